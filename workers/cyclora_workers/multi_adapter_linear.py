"""A frozen linear layer whose rows may each belong to another adapter.

The frozen product runs once over all rows; the low-rank part runs per segment, inside one
autograd function: slicing under autograd would build a zero-padded gradient per slice.

Legend: T packed tokens (rows), N rows of one segment, D features in, F features out, R lora_rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclora_workers.adapter import ModuleAdapter
from cyclora_workers.context import ROW_ALIGNMENT, PassContext, Segment
from cyclora_workers.cuda.grouped_linear import grouped_linear
from cyclora_workers.cuda.low_rank import LowRank
from cyclora_workers.cuda.segment_table import SegmentTable
from cyclora_workers.frozen_weight import FrozenWeight
from cyclora_workers.quantized_weight import QuantizedLinear, frozen_weight
from cyclora_workers.rows import linear, with_aligned_rows
from cyclora_workers.stacked_low_rank import StackedLowRank


class PassHolder:
    """Where the linear layers of one base model find the pass that is running.

    Hugging Face forwards keyword arguments to the attention function but not to linear layers. One
    holder per base model: two base models in one process must not see each other's passes.
    """

    def __init__(self, device: torch.device) -> None:
        self.context: PassContext | None = None
        self.gradient_anchor = torch.zeros((), device=device, requires_grad=True)
        """Makes the first adapted layer's output require a gradient although its input does not;
        so the backward pass reaches that layer and nothing below it."""


@dataclass(frozen=True, slots=True)
class SegmentAdapter:
    """Rows [start, stop) and the adapter on this module that they use."""

    start: int
    stop: int
    adapter: ModuleAdapter
    scaling: float


def segment_adapters(segments: Sequence[Segment], module_name: str) -> list[SegmentAdapter]:
    """The segments whose adapter targets this module."""
    return [
        SegmentAdapter(segment.start, segment.stop, module, segment.adapter.scaling)
        for segment in segments
        if segment.adapter is not None
        and (module := segment.adapter.modules.get(module_name)) is not None
    ]


def align_rows(num_rows: int) -> int:
    """Round up to ``ROW_ALIGNMENT``."""
    return -(-num_rows // ROW_ALIGNMENT) * ROW_ALIGNMENT


def add_low_rank_(y_TF: Tensor, x_TD: Tensor, segment: SegmentAdapter) -> Tensor:
    """Add one segment's low-rank part to the base output in place; returns x A^T of its rows.

    ::

        y[start:stop] += scaling * (x[start:stop] A^T) B^T

    Both products run over at least ``ROW_ALIGNMENT`` rows. So a row's bits depend neither on how
    many rows its segment has nor on its place: a decode step computes what training computes.

    Shapes:
        y_TF: in x's dtype, or fp32; both with aligned rows. Returns [N, R] in x's dtype.
    """
    start, stop, adapter = segment.start, segment.stop, segment.adapter
    num_rows = stop - start
    low_NR = linear(rows_from(x_TD, start, align_rows(num_rows)), adapter.lora_A_RD, None)
    y_NF = y_TF[start:stop]
    if num_rows < ROW_ALIGNMENT:
        padded_NF = rows_from(y_NF, 0, ROW_ALIGNMENT)
        addmm_(padded_NF, low_NR, adapter.lora_B_FR.t(), segment.scaling)
        y_NF.copy_(padded_NF[:num_rows])
    else:
        addmm_(y_NF, low_NR[:num_rows], adapter.lora_B_FR.t(), segment.scaling)
    return low_NR[:num_rows]


def add_low_ranks_(
    y_TF: Tensor,
    x_TD: Tensor,
    module_name: str,
    segments: Sequence[Segment],
    stacked: StackedLowRank | None,
) -> None:
    """Add the low-rank parts of all segments, those that are stacked in one go; no gradient.

    Shapes:
        As ``add_low_rank_``.
    """
    if stacked is not None:
        stacked.add_(y_TF, x_TD, module_name)
        segments = stacked.rest
    for segment in segment_adapters(segments, module_name):
        add_low_rank_(y_TF, x_TD, segment)


def rows_from(x_TD: Tensor, start: int, num_rows: int) -> Tensor:
    """``num_rows`` rows beginning at ``start``: a view where x is long enough, else zero-padded.

    Aligned either way when those of x are.
    """
    rows_ND = x_TD[start : start + num_rows]
    missing = num_rows - rows_ND.shape[0]
    return with_aligned_rows(functional.pad(rows_ND, (0, 0, 0, missing))) if missing else rows_ND


def accumulate_gradients_(
    segment: SegmentAdapter, dy_NF: Tensor, x_ND: Tensor, low_NR: Tensor
) -> Tensor:
    """Add one segment's gradients to the adapter's flat buffer; returns d loss / d (x A^T).

    ::

        dlow = scaling * dy B;   dA += dlow^T x;   dB += scaling * dy^T (x A^T)

    Shapes:
        Rows of the segment only: the sums never see a neighbour. dy_NF and x_ND begin at aligned
        addresses. Returns [N, R] in dy's dtype.
    """
    adapter = segment.adapter
    dlow_NR = linear(dy_NF, adapter.lora_B_FR.t(), None).mul_(segment.scaling)
    if adapter.gradient_A_RD is not None and adapter.gradient_B_FR is not None:
        addmm_(adapter.gradient_A_RD, dlow_NR.t(), x_ND, 1.0)
        # Transposed: the few columns of the lora_rank make a faster product as its rows.
        addmm_(adapter.gradient_B_FR.t(), low_NR.t(), dy_NF, segment.scaling)
    return dlow_NR


def low_ranks_backward_(
    segments: Sequence[SegmentAdapter],
    lows: Sequence[Tensor],
    dy_TF: Tensor,
    x_TD: Tensor | None,
    dx_TD: Tensor | None,
) -> None:
    """What all segments' low-rank parts add to their adapters' gradients and to ``dx_TD``.

    Args:
        segments: as ``add_low_rank_`` took them.
        lows: what it returned.
        dy_TF: gradient of the output, with aligned rows.
        x_TD: the input, with aligned rows; None where no adapter is trained.
        dx_TD: gradient of the input, added to in place; None where nothing wants it.
    """
    for segment, low_NR in zip(segments, lows, strict=True):
        rows = slice(segment.start, segment.stop)
        if x_TD is not None:
            dlow_NR = accumulate_gradients_(segment, dy_TF[rows], x_TD[rows], low_NR)
        else:
            dlow_NR = linear(dy_TF[rows], segment.adapter.lora_B_FR.t(), None)
            dlow_NR.mul_(segment.scaling)
        if dx_TD is not None:
            addmm_(dx_TD[rows], dlow_NR, segment.adapter.lora_A_RD, 1.0)


def addmm_(target: Tensor, left: Tensor, right: Tensor, alpha: float) -> None:
    """``target += alpha * left @ right``, without rounding the product to the operands' dtype."""
    if left.is_cuda and target.dtype != left.dtype:
        target.add_(torch.mm(left, right, out_dtype=target.dtype), alpha=alpha)
    elif left.is_cuda or target.dtype != torch.float32:
        target.addmm_(left, right, alpha=alpha)
    else:
        # Scaled apart: scaling and adding in one, torch rounds the last elements of a thread's
        # share another way, and where that ends depends on the neighbours.
        left = left.float() if alpha == 1.0 else left.float() * alpha
        target.add_(linear(left, right.t().float(), None))


class _MultiAdapterFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor | None,
        weight: FrozenWeight,
        bias_F: Tensor | None,
        segments: Sequence[SegmentAdapter],
    ) -> Tensor:
        x_TD = with_aligned_rows(x_TD)
        y_TF = weight.product(x_TD, bias_F)
        lows = [add_low_rank_(y_TF, x_TD, segment) for segment in segments]
        ctx.weight = weight
        ctx.segments = segments
        ctx.lows = lows
        ctx.save_for_backward(x_TD if anchor is not None else None)
        return y_TF.contiguous()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy_TF = with_aligned_rows(grad_outputs[0].contiguous())
        (x_TD,) = ctx.saved_tensors
        dx_TD = None
        if ctx.needs_input_grad[0]:
            dx_TD = ctx.weight.transposed_product(dy_TF)
        low_ranks_backward_(ctx.segments, ctx.lows, dy_TF, x_TD, dx_TD)
        return None if dx_TD is None else dx_TD.contiguous(), None, None, None, None


class MultiAdapterLinear(nn.Module):
    """Stands in for an ``nn.Linear`` of the base model; knows its name and its base model's holder.

    Gradients of the adapters go straight into their flat buffers, none is made for the frozen
    weight, and none for the input unless something below wants it.
    """

    def __init__(self, name: str, linear: nn.Linear | QuantizedLinear, holder: PassHolder) -> None:
        super().__init__()
        self.name = name
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = frozen_weight(linear)
        self.bias = linear.bias
        self._holder = holder

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., D] with T rows in all, of which the segments cover the first ones."""
        context = self._holder.context
        assert context is not None, "the base model is only called through BaseModel"
        if context.segment_table is not None:
            return self._grouped(x, context.segment_table)
        if not torch.is_grad_enabled():
            return self._without_gradient(x, context)
        segments = segment_adapters(context.segments, self.name)
        wants_gradient = any(segment.adapter.gradient_A_RD is not None for segment in segments)
        y_TF: Tensor = _MultiAdapterFunction.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, self.in_features),
            self._holder.gradient_anchor if wants_gradient else None,
            self.weight,
            self.bias,
            segments,
        )
        return y_TF.view(*x.shape[:-1], self.out_features)

    def _without_gradient(self, x: Tensor, context: PassContext) -> Tensor:
        """What the autograd function computes, to the bit, and nothing that only it needs."""
        x_TD = with_aligned_rows(x.reshape(-1, self.in_features))
        y_TF = self.weight.product(x_TD, self.bias)
        add_low_ranks_(y_TF, x_TD, self.name, context.segments, context.stacked)
        return y_TF.contiguous().view(*x.shape[:-1], self.out_features)

    def _grouped(self, x: Tensor, table: SegmentTable) -> Tensor:
        low_rank = LowRank.of(table, self.name)
        wants_gradient = torch.is_grad_enabled() and low_rank.is_trained
        y_TF = grouped_linear(
            x.reshape(-1, self.in_features),
            self.weight,
            self.bias,
            low_rank,
            self._holder.gradient_anchor if wants_gradient else None,
        )
        return y_TF.view(*x.shape[:-1], self.out_features)
