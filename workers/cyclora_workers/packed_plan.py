"""Which attention serves a packed pass: chosen by device, for passes and the models' check."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cyclora_workers.attention import PackedAttention
from cyclora_workers.context import AttentionPlan, align_rows
from cyclora_workers.cuda.varlen import VarlenAttention, is_supported


def packed_attention(
    cu_seqlens: Sequence[int], *, device: torch.device, dtype: torch.dtype, head_size: int
) -> AttentionPlan:
    """The plan for packed sequences whose rows ``BaseModel.hidden`` aligns.

    One call of the flash kernel for all sequences where there is one, else a call of SDPA per
    length.
    """
    if is_supported(device, dtype, head_size):
        return VarlenAttention(cu_seqlens, align_rows(cu_seqlens[-1]), device)
    return PackedAttention(cu_seqlens)
