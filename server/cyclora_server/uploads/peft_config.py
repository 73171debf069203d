"""What an uploaded ``adapter_config.json`` asks for, and whether we compute the same.

PEFT has many kinds of LoRA. Each option is here with the values under which an adapter is a plain
product of B and A beside a frozen layer; every other value is refused by name, options that we have
never heard of too, so that no adapter is computed as something that it is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cyclora_core.errors import UserError
from cyclora_core.peft import CONFIG_FILE

_MAX_ALPHA = 1_000_000

_ANY: Callable[[Any], bool] = lambda value: True  # noqa: E731 - reads as a value in the table


def _one_of(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(each) and value == each for each in allowed)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "peft_type": _one_of("LORA"),
    "task_type": _one_of("CAUSAL_LM", None),
    "bias": _one_of("none"),
    "fan_in_fan_out": _one_of(False, None),
    # The others change the base model's weights too, which the file does not hold.
    "init_lora_weights": _one_of(True, False, None, "gaussian", "eva", "orthogonal"),
    # Which layers have an adapter is read from the tensors that are there.
    "target_modules": _ANY,
    "exclude_modules": _ANY,
    "layers_to_transform": _ANY,
    "layers_pattern": _ANY,
    # About how it was made or stored, not about what it computes.
    "auto_mapping": _ANY,
    "base_model_name_or_path": _ANY,
    "ensure_weight_tying": _one_of(False, None),
    "eva_config": _ANY,
    "inference_mode": _ANY,
    "lora_dropout": _ANY,
    "megatron_core": _ANY,
    "peft_version": _ANY,
    "qalora_group_size": _ANY,
    "revision": _ANY,
    "runtime_config": _ANY,
    # Read below.
    "lora_alpha": _ANY,
    "r": _ANY,
    "use_rslora": _one_of(True, False, None),
}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What of a config decides the numbers."""

    lora_rank: int
    lora_alpha: float
    """As if ``use_rslora`` were off: PEFT multiplies B A by lora_alpha / lora_rank then."""


def read_config(data: bytes, max_lora_rank: int) -> PeftConfig:
    """Check a config.

    Raises:
        UserError: it is no JSON object, or an option has a value that is not supported.
    """
    config = _object(data)
    for name, value in config.items():
        check = _CHECKS.get(name, _is_off)
        if not check(value):
            raise UserError(
                f"{CONFIG_FILE} has {name} = {json.dumps(value)[:140]}, which is not supported; "
                "only plain LoRA of linear layers is: no bias, DoRA, modules_to_save or pattern"
            )
    if "peft_type" not in config:
        raise UserError(f"{CONFIG_FILE} has no peft_type; expected LORA")
    lora_rank: Any = config.get("r")
    if type(lora_rank) is not int or not 1 <= lora_rank <= max_lora_rank:
        raise UserError(
            f"{CONFIG_FILE} has r = {json.dumps(lora_rank)[:60]}; expected 1 to {max_lora_rank}"
        )
    lora_alpha: Any = config.get("lora_alpha")
    if type(lora_alpha) not in (int, float) or not 0 < lora_alpha <= _MAX_ALPHA:
        raise UserError(
            f"{CONFIG_FILE} has lora_alpha = {json.dumps(lora_alpha)[:60]}; expected more than 0 "
            f"and at most {_MAX_ALPHA:,}"
        )
    root = math.sqrt(lora_rank) if config.get("use_rslora") else 1.0
    return PeftConfig(lora_rank, float(lora_alpha * root))


def _object(data: bytes) -> dict[str, Any]:
    try:
        config: Any = json.loads(data)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{CONFIG_FILE} is no JSON object")
    return config


def _is_off(value: Any) -> bool:
    """Whether an option that is not known here is not in use."""
    return value is None or value is False or value in ({}, [])
