"""Which precision the base model gets when nobody says (decision 0030)."""

from __future__ import annotations

import torch
from transformers import AutoConfig

MIN_BF16_HIDDEN_SIZE = 512
"""On a CPU, smaller models spend their time outside of matrix products and gain little in bf16."""


def choose_dtype(
    wanted: str, device: torch.device, hidden_size: int, *, has_bf16: bool
) -> torch.dtype:
    """The precision asked for, or for "auto" the one that trains faster.

    Args:
        wanted: "auto", "float32" or "bfloat16".
        device: Where the base model will be.
        hidden_size: Of the base model.
        has_bf16: Whether the CPU multiplies bf16 itself; see ``cpu_has_bf16``.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    is_faster = has_bf16 and hidden_size >= MIN_BF16_HIDDEN_SIZE
    return torch.bfloat16 if device.type == "cuda" or is_faster else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for products in bf16 (AVX512-BF16 or AMX)."""
    # As torch asks when it chooses its own kernels; there is no public form.
    asked = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)  # pyright: ignore[reportPrivateUsage]
    return any(ask() for ask in asked)


def hidden_size_of(path: str) -> int:
    """The hidden size of a base model that is not loaded yet, by folder or Hugging Face name."""
    size: int = AutoConfig.from_pretrained(path).get_text_config().hidden_size
    return size
