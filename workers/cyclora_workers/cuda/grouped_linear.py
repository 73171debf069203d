"""The multi-adapter linear layer with grouped kernels behind it, for passes of many short segments.

Legend: T packed tokens, D features in, F features out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.low_rank import LowRank, is_grouped
from cyclora_workers.cuda.segment_table import (
    DECODE_BLOCK_ROWS,
    TRAINING_BLOCK_ROWS,
    AddressBook,
    SegmentTable,
)
from cyclora_workers.frozen_weight import FrozenWeight


def can_group(device: torch.device) -> bool:
    """Whether Triton is there to compile for the device; torch's CUDA wheels bring it along."""
    return device.type == "cuda" and find_spec("triton") is not None


class GroupedLinears:
    """Gives the passes of one base model their segment tables."""

    def __init__(self, module_names: Sequence[str], device: torch.device) -> None:
        self.book = AddressBook(module_names)
        self._device = device

    def prepared(self, context: PassContext) -> PassContext:
        """The context with a table, if its linear layers are to use the grouped kernels."""
        if context.segment_table is not None or not is_grouped(context.segments):
            return context
        block_rows = TRAINING_BLOCK_ROWS if torch.is_grad_enabled() else DECODE_BLOCK_ROWS
        return replace(context, segment_table=self.table(context.segments, block_rows))

    def table(self, segments: Sequence[Segment], block_rows: int) -> SegmentTable:
        """The segments of a pass on the device, in tiles of so many rows."""
        return SegmentTable.of(self.book, segments, block_rows, self._device)

    def low_rank(self, segments: Sequence[Segment], module_name: str) -> LowRank | None:
        """One module for segments without a gradient, if it is to use the grouped kernels."""
        adapted = [s for s in segments if s.adapter and module_name in s.adapter.modules]
        if not is_grouped(adapted):
            return None
        return LowRank.of(self.table(adapted, DECODE_BLOCK_ROWS), module_name)


def grouped_linear(
    x_TD: Tensor,
    weight: FrozenWeight,
    bias_F: Tensor | None,
    low_rank: LowRank,
    anchor: Tensor | None,
) -> Tensor:
    """``x W^T + bias`` and the low-rank part of every row's adapter.

    Args:
        x_TD: rows of the pass.
        weight: frozen, gets no gradient.
        bias_F: likewise.
        low_rank: the module in this pass.
        anchor: as in ``PassHolder``, if an adapter of the pass is being trained on this module.
    """
    y_TF: Tensor = _GroupedFunction.apply(x_TD, anchor, weight, bias_F, low_rank)  # type: ignore[no-untyped-call]
    return y_TF


class _GroupedFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor | None,
        weight: FrozenWeight,
        bias_F: Tensor | None,
        low_rank: LowRank,
    ) -> Tensor:
        x_TD = x_TD.contiguous()
        y_TF = functional.linear(x_TD, weight.dense(), bias_F)
        low_PTW = low_rank.add_(y_TF, x_TD)
        ctx.weight, ctx.low_rank = weight, low_rank
        ctx.save_for_backward(*((x_TD, low_PTW) if anchor is not None else ()))
        return y_TF

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy_TF = grad_outputs[0].contiguous()
        dlow_PTW = ctx.low_rank.low_gradient(dy_TF)
        if ctx.saved_tensors:
            x_TD, low_PTW = ctx.saved_tensors
            ctx.low_rank.accumulate_(dy_TF, x_TD, low_PTW, dlow_PTW)
        dx_TD = None
        if ctx.needs_input_grad[0]:
            dx_TD = dy_TF @ ctx.weight.dense()
            ctx.low_rank.add_input_gradient_(dx_TD, dlow_PTW)
        return dx_TD, None, None, None, None
