"""What each loss function takes: one table for the server, which refuses, and the worker.

The formulas are in ``cyclora_workers.losses``; shapes are checked where the data are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cyclora_core.errors import UserError
from cyclora_core.payload import Array

Config = Mapping[str, float]

CUSTOM = "custom"
"""The loss function of those that are uploaded; each declares its own inputs."""

CLIP_LOW = "clip_low_threshold"
CLIP_HIGH = "clip_high_threshold"
RATIO_MASK = "sequence_ratio_mask"

_CLIPS = frozenset({CLIP_LOW, CLIP_HIGH})
_POLICY_INPUTS = frozenset({"target_tokens", "logprobs", "advantages"})
_MAX_FP32 = float(np.finfo(np.float32).max)
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class LossRule:
    """The ``loss_fn_inputs`` and ``loss_fn_config`` of one loss function."""

    inputs: frozenset[str]
    optional_inputs: frozenset[str] = frozenset()
    config: Config = field(default_factory=dict[str, float])
    """Keys of ``loss_fn_config`` with the value of a key that is left out."""
    takes_top_k: bool = False
    """Whether inputs may be [N, K]."""


LOSS_RULES: Mapping[str, LossRule] = {
    "cross_entropy": LossRule(frozenset({"target_tokens", "weights"}), takes_top_k=True),
    "importance_sampling": LossRule(_POLICY_INPUTS),
    "ppo": LossRule(_POLICY_INPUTS, _CLIPS, {CLIP_LOW: 0.8, CLIP_HIGH: 1.2}),
    "cispo": LossRule(_POLICY_INPUTS, _CLIPS, {CLIP_LOW: 0.0, CLIP_HIGH: 4.0}),
    "dro": LossRule(_POLICY_INPUTS, config={"beta": 0.05}),
    # Tinker's defaults for gspo are not published: those of ppo, whose surrogate it shares.
    "gspo": LossRule(_POLICY_INPUTS | {RATIO_MASK}, _CLIPS, {CLIP_LOW: 0.8, CLIP_HIGH: 1.2}),
}

_CUSTOM_RULE = LossRule(frozenset({"target_tokens"}), takes_top_k=True)

_NOT_SUPPORTED = {
    "stable_reinforce": (
        "its formula is not public; use ppo or importance_sampling, which take the same "
        "target_tokens, logprobs and advantages"
    ),
}


def loss_rule(loss_fn: str) -> LossRule:
    """The rule of a loss function by its name.

    Raises:
        UserError: it is unknown, or known to Tinker and not supported here.
    """
    if loss_fn == CUSTOM:
        return _CUSTOM_RULE
    if loss_fn in _NOT_SUPPORTED:
        raise UserError(
            f"loss_fn {loss_fn!r} is not supported by this server: {_NOT_SUPPORTED[loss_fn]}"
        )
    if loss_fn not in LOSS_RULES:
        known = ", ".join([*LOSS_RULES, CUSTOM])
        raise UserError(f"loss_fn {loss_fn[:_MAX_SHOWN]!r} is unknown; expected one of {known}")
    return LOSS_RULES[loss_fn]


def full_config(loss_fn: str, config: Config) -> Config:
    """The config with its defaults filled in.

    Raises:
        UserError: a key is unknown, a value is not finite in fp32, or the clip thresholds are
            swapped.
    """
    defaults = loss_rule(loss_fn).config
    for name, value in config.items():
        if name not in defaults:
            raise UserError(
                f"loss_fn_config has {name[:_MAX_SHOWN]!r}, which {loss_fn} does not take; "
                f"expected {', '.join(sorted(defaults)) or 'nothing'}"
            )
        if not abs(value) <= _MAX_FP32:
            raise UserError(f"loss_fn_config[{name!r}] is {value}; expected a finite fp32 number")
    merged = {**defaults, **config}
    _check_order("loss_fn_config", merged.get(CLIP_LOW, -math.inf), merged.get(CLIP_HIGH, math.inf))
    return merged


def check_values(where: str, inputs: Mapping[str, Array], config: Config) -> None:
    """Refuse a datum whose inputs contradict one another, or the config.

    Args:
        where: Names the datum.
        inputs: Its ``loss_fn_inputs``, whose shapes were checked.
        config: A full one.

    Raises:
        UserError: at some token the lower clip threshold is above the upper one; or
            ``sequence_ratio_mask`` marks no token, and the mean over none is no number.
    """
    if RATIO_MASK in inputs and not inputs[RATIO_MASK].any():
        raise UserError(
            f"{where} has no token whose {RATIO_MASK} is not 0; expected the tokens that were "
            "sampled, whose mean log-ratio makes the sequence's ratio"
        )
    if not _CLIPS & inputs.keys():
        return
    low_N, high_N = np.broadcast_arrays(
        inputs.get(CLIP_LOW, np.float32(config[CLIP_LOW])),
        inputs.get(CLIP_HIGH, np.float32(config[CLIP_HIGH])),
    )
    crossed = np.flatnonzero(low_N > high_N)
    if crossed.size:
        token = int(crossed[0])
        _check_order(f"{where} at token {token}", float(low_N[token]), float(high_N[token]))


def _check_order(where: str, low: float, high: float) -> None:
    if low > high:
        raise UserError(
            f"{where}: {CLIP_LOW} {low:g} is above {CLIP_HIGH} {high:g}; they bound the "
            "probability ratio from below and above"
        )
