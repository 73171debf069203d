"""Adapters as PEFT's files, and what of a base model decides whether one fits; no torch here.

::

    adapter_config.json         what PEFT reads first
    adapter_model.safetensors   A and B of each target module under PEFT's names
    checkpoint_complete         empty; says that the others are all there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
COMPLETE_FILE = "checkpoint_complete"
OPTIMIZER_FILE = "optimizer.safetensors"
"""Ours; PEFT does not know it."""

LORA_ALPHA = 32
"""Of every adapter that is created here: scaling = lora_alpha / lora_rank."""

_PREFIX = "base_model.model."
_EXPERTS = ".experts"
_LAST_PARAMETER = "down_proj"


class ModuleGroup(StrEnum):
    """What the flags of a LoraConfig switch on and off."""

    ATTN = "attn"
    MLP = "mlp"
    UNEMBED = "unembed"


@dataclass(frozen=True, slots=True)
class TargetModule:
    """A linear layer of the base model that can receive an adapter."""

    name: str
    """Qualified name in the Hugging Face causal LM; PEFT's keys are made of it."""
    in_features: int
    out_features: int
    group: ModuleGroup
    num_experts: int = 0
    """Of a parameter that holds one matrix per expert; 0 of a linear layer."""
    num_active_experts: int = 1
    """How many of them serve a token; the lora_rank is shared out among these."""

    def rank(self, lora_rank: int) -> int:
        """Inner width of its A and B, per expert, in an adapter of this lora_rank."""
        return max(1, lora_rank // self.num_active_experts)


def lora_A_name(module_name: str) -> str:
    """What PEFT's file calls the A of a module."""
    return f"{_PREFIX}{_wrapped(module_name)}.lora_A.weight"


def lora_B_name(module_name: str) -> str:
    """What PEFT's file calls the B of a module."""
    return f"{_PREFIX}{_wrapped(module_name)}.lora_B.weight"


def _wrapped(name: str) -> str:
    """PEFT wraps a module once per adapted parameter, the first of them innermost."""
    module, _, parameter = name.rpartition(".")
    if not module.endswith(_EXPERTS):
        return name
    return module if parameter == _LAST_PARAMETER else f"{module}.base_layer"


def adapter_config(
    base_model: str,
    lora_rank: int,
    lora_alpha: float,
    adapted: Sequence[TargetModule],
    target_modules: Sequence[TargetModule],
) -> dict[str, Any]:
    """The contents of ``adapter_config.json`` of one of our adapters.

    ``adapted`` are those of the base model's ``target_modules`` that it has A and B for.
    """
    linears = [module for module in adapted if not module.num_experts]
    experts = {_last_segments(m.name, 2): m.rank(lora_rank) for m in adapted if m.num_experts}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora_rank,
        # Whole numbers as such: the same adapter is the same bytes, wherever its alpha came from.
        "lora_alpha": int(lora_alpha) if float(lora_alpha).is_integer() else lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _targets(linears, target_modules),
    }
    if experts:
        config["target_parameters"] = sorted(experts)
        config["rank_pattern"] = experts
    return config


def _targets(adapted: Sequence[TargetModule], all_modules: Sequence[TargetModule]) -> list[str]:
    """What names the adapted modules and no others to PEFT, which compares ends of names."""
    names = {module.name for module in adapted}
    ends = {_last_segments(name) for name in names}
    others = {module.name for module in all_modules if not module.num_experts} - names
    is_ambiguous = any(_last_segments(name) in ends for name in others)
    return sorted(names if is_ambiguous else ends)


def _last_segments(name: str, count: int = 1) -> str:
    return ".".join(name.split(".")[-count:])
