"""Token-local loss functions: the loss of each token depends on that token's logprob alone.

So d loss / d logprob, the coefficient, is known as soon as the logprobs are, and no autograd is
needed. All losses are sums over tokens; dividing by a count would make the gradient depend on how
an operation is cut into microbatches.

Legend: N tokens of one datum (or of several, end to end), K targets per token.

Source:
    Tinker docs, "Loss functions"; checked against autograd in tests/workers/test_losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cyclora_core.errors import UserError

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float]

CLIP_LOW = "clip_low_threshold"
CLIP_HIGH = "clip_high_threshold"


class TokenLoss(NamedTuple):
    """The loss of each token and its derivative by that token's logprob; both fp32, same shape."""

    loss: Tensor
    coefficient: Tensor


LossFunction = Callable[[Tensor, Inputs, Config], TokenLoss]
"""From fp32 logprobs, the other inputs in the same shape, and a full config."""


@dataclass(frozen=True, slots=True)
class LossSpec:
    """A loss function, and what a datum and ``loss_fn_config`` must hold for it."""

    compute: LossFunction
    required_inputs: Sequence[str]
    """Beside target_tokens, which every loss function needs."""
    optional_inputs: Sequence[str] = ()
    config_defaults: Config = field(default_factory=dict[str, float])
    has_top_k_targets: bool = False
    """Whether inputs may be [N, K]."""


def cross_entropy(logprobs: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Weighted negative log-likelihood; loss weights may have any sign.

    ::

        loss = -sum_t weights[t] * logprobs[t]
    """
    weights = inputs["weights"]
    return TokenLoss(-weights * logprobs, -weights)


def importance_sampling(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Policy gradient, corrected for the sampler's distribution.

    ::

        ratio[t] = exp(logprobs[t] - sampler_logprobs[t])
        loss     = -sum_t ratio[t] * advantages[t]
    """
    loss_N = -_ratio(logprobs_N, inputs) * inputs["advantages"]
    return TokenLoss(loss_N, loss_N)


def ppo(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Clipped surrogate; the thresholds bound the ratio itself.

    ::

        loss = -sum_t min(ratio[t] * advantages[t], clip(ratio[t], low, high) * advantages[t])

    A token whose clipped term is the smaller one has coefficient 0.
    """
    advantages_N = inputs["advantages"]
    ratio_N = _ratio(logprobs_N, inputs)
    unclipped_N = ratio_N * advantages_N
    clipped_N = _clip(ratio_N, inputs, config) * advantages_N
    loss_N = -torch.minimum(unclipped_N, clipped_N)
    return TokenLoss(loss_N, torch.where(unclipped_N <= clipped_N, loss_N, 0.0))


def cispo(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Policy gradient weighted by the clipped ratio, which is held constant.

    ::

        loss = -sum_t stop_gradient(clip(ratio[t], low, high)) * logprobs[t] * advantages[t]
    """
    weight_N = _clip(_ratio(logprobs_N, inputs), inputs, config) * inputs["advantages"]
    return TokenLoss(-weight_N * logprobs_N, -weight_N)


def dro(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Policy gradient with a quadratic penalty on leaving the sampler's distribution.

    ::

        difference[t] = logprobs[t] - sampler_logprobs[t]
        loss          = -sum_t (logprobs[t] * advantages[t] - beta / 2 * difference[t]^2)
    """
    beta, advantages_N = config["beta"], inputs["advantages"]
    difference_N = logprobs_N - inputs["logprobs"]
    loss_N = -(logprobs_N * advantages_N - beta / 2 * difference_N.square())
    return TokenLoss(loss_N, beta * difference_N - advantages_N)


def _ratio(logprobs_N: Tensor, inputs: Inputs) -> Tensor:
    return (logprobs_N - inputs["logprobs"]).exp()


def _clip(ratio_N: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """Clip by the datum's own thresholds where it has them, else by the operation's."""
    low_N = inputs.get(CLIP_LOW, torch.full_like(ratio_N, config[CLIP_LOW]))
    high_N = inputs.get(CLIP_HIGH, torch.full_like(ratio_N, config[CLIP_HIGH]))
    return ratio_N.clamp(low_N, high_N)


_POLICY_INPUTS = ("logprobs", "advantages")
_CLIPS = (CLIP_LOW, CLIP_HIGH)

LOSSES: Mapping[str, LossSpec] = {
    "cross_entropy": LossSpec(cross_entropy, ("weights",), has_top_k_targets=True),
    "importance_sampling": LossSpec(importance_sampling, _POLICY_INPUTS),
    "ppo": LossSpec(ppo, _POLICY_INPUTS, _CLIPS, {CLIP_LOW: 0.8, CLIP_HIGH: 1.2}),
    "cispo": LossSpec(cispo, _POLICY_INPUTS, _CLIPS, {CLIP_LOW: 0.0, CLIP_HIGH: 4.0}),
    "dro": LossSpec(dro, _POLICY_INPUTS, config_defaults={"beta": 0.05}),
}


def loss_spec(loss_fn: str) -> LossSpec:
    """The loss function of that name.

    Raises:
        UserError: there is none.
    """
    if loss_fn not in LOSSES:
        raise UserError(f"loss_fn {loss_fn!r} is unknown; use one of {', '.join(LOSSES)}")
    return LOSSES[loss_fn]


def full_config(loss_fn: str, config: Config) -> Config:
    """The config with its defaults filled in.

    Raises:
        UserError: a key is unknown, a value is not finite, or the clip thresholds are swapped.
    """
    defaults = loss_spec(loss_fn).config_defaults
    for key, value in config.items():
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise UserError(f"loss_fn_config of {loss_fn} has no key {key!r}; known: {known}")
        if not math.isfinite(value):
            raise UserError(f"loss_fn_config {key} is {value}; it must be finite")
    merged = {**defaults, **config}
    if CLIP_LOW in merged and merged[CLIP_LOW] > merged[CLIP_HIGH]:
        raise UserError(f"{CLIP_LOW} {merged[CLIP_LOW]} is above {CLIP_HIGH} {merged[CLIP_HIGH]}")
    return merged
