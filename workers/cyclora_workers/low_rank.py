"""The low-rank part of each segment of a packed pass, forward and backward, by torch's products.

A product of oneDNN is compiled for its shape, which takes longer than the product itself when that
is small, and a tenant brings new lengths with every step. So no product has the rows of its
segment: those over rows take a rounded number of them, of which the last are the neighbours' and
are left out again, and those that sum over rows are cut at a rounded number.

Legend: T packed tokens (rows), N rows of one segment, M the same rounded up, D features in,
F features out, R lora_rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cyclora_workers.adapter import ModuleAdapter
from cyclora_workers.context import ROW_ALIGNMENT, Segment, align_rows
from cyclora_workers.rows import linear, with_aligned_rows
from cyclora_workers.stacked_low_rank import StackedLowRank
from cyclora_workers.thread_count import threads_for

_STEPS_PER_DOUBLING = 8
"""Between a number of rows and its double; a pass of 4,096 rows knows 40 sizes."""

_MAX_UNCOMPILED_FLOPS = 8_000_000
"""Up to here a sum over rows is done by the product of torch that compiles nothing: as fast for an
adapter on a small layer, two times slower on a large one (docs/log.md)."""


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


def add_low_rank_(y_TF: Tensor, x_TD: Tensor, segment: SegmentAdapter) -> Tensor:
    """Add one segment's low-rank part to the base output in place; returns x A^T of its rows.

    ::

        y[start:stop] += (scaling * x[start:stop] A^T) B^T

    Both products run over at least ``ROW_ALIGNMENT`` rows. So a row's bits depend neither on how
    many rows its segment has nor on its place: a decode step computes what training computes.

    Shapes:
        y_TF: in x's dtype, or fp32; both with aligned rows. Returns [N, R] in x's dtype.
    """
    start, stop, adapter = segment.start, segment.stop, segment.adapter
    num_rows = stop - start
    with threads_for(_num_weights(adapter)):
        low_MR = linear(_enough_rows(x_TD, start, num_rows), adapter.lora_A_RD, None)
        up_MF = _product(low_MR, adapter.lora_B_FR, segment.scaling, y_TF.dtype)
        y_TF[start:stop].add_(up_MF[:num_rows])
    return low_MR[:num_rows]


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
        x_ND = None if x_TD is None else x_TD[segment.start : segment.stop]
        low_rank_backward_(segment, low_NR, dy_TF, x_ND, dx_TD)


def low_rank_backward_(
    segment: SegmentAdapter,
    low_NR: Tensor,
    dy_TF: Tensor,
    x_ND: Tensor | None,
    dx_TD: Tensor | None,
) -> None:
    """What one segment's part adds to its adapter's flat gradient and to ``dx_TD``.

    ::

        dlow = scaling * dy B;   dA += dlow^T x;   dB += scaling * dy^T (x A^T);   dx += dlow A

    Shapes:
        As ``low_ranks_backward_``; x_ND the segment's rows alone. The sums over rows never see a
        neighbour.
    """
    start, stop, adapter = segment.start, segment.stop, segment.adapter
    num_rows = stop - start
    with threads_for(_num_weights(adapter)):
        dlow_MR = linear(_enough_rows(dy_TF, start, num_rows), adapter.lora_B_FR.t(), None)
        dlow_MR.mul_(segment.scaling)
        if (
            x_ND is not None
            and adapter.gradient_A_RD is not None
            and adapter.gradient_B_FR is not None
        ):
            add_sum_over_rows_(adapter.gradient_A_RD, dlow_MR[:num_rows], x_ND, 1.0)
            # Transposed: the few columns of the lora_rank make a faster product as its rows.
            gradient_RF, dy_NF = adapter.gradient_B_FR.t(), dy_TF[start:stop]
            add_sum_over_rows_(gradient_RF, low_NR, dy_NF, segment.scaling)
        if dx_TD is not None:
            dx_MD = _product(dlow_MR, adapter.lora_A_RD.t(), 1.0, dx_TD.dtype)
            dx_TD[start:stop].add_(dx_MD[:num_rows])


def _num_weights(adapter: ModuleAdapter) -> int:
    """Elements of the larger of A and B."""
    return max(adapter.lora_A_RD.numel(), adapter.lora_B_FR.numel())


def rows_from(x_TD: Tensor, start: int, num_rows: int) -> Tensor:
    """``num_rows`` rows beginning at ``start``: a view where x is long enough, else zero-padded.

    Aligned either way when those of x are.
    """
    rows_ND = x_TD[start : start + num_rows]
    missing = num_rows - rows_ND.shape[0]
    return with_aligned_rows(functional.pad(rows_ND, (0, 0, 0, missing))) if missing else rows_ND


def rounded_rows(num_rows: int) -> int:
    """The next of the sizes that products over rows have, all multiples of ``ROW_ALIGNMENT``."""
    step = _rows_step(num_rows)
    return -(-num_rows // step) * step


def _enough_rows(x_TD: Tensor, start: int, num_rows: int) -> Tensor:
    """A segment's rows and some that follow, for a product of a size that comes again."""
    rounded = rounded_rows(num_rows)
    if start + rounded > x_TD.shape[0]:
        rounded = align_rows(num_rows)
    return rows_from(x_TD, start, rounded)


def _rows_step(num_rows: int) -> int:
    """What numbers of rows about this one are rounded to a multiple of."""
    power_of_two = 1 << (num_rows.bit_length() - 1)
    return max(ROW_ALIGNMENT, power_of_two // _STEPS_PER_DOUBLING)


def _product(left_MR: Tensor, right_FR: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """``scaling * left right^T`` in ``dtype``, without rounding it to the operands'."""
    if left_MR.is_cuda and dtype != left_MR.dtype:
        return torch.mm(left_MR, right_FR.t(), out_dtype=dtype).mul_(scaling)
    left_MR = left_MR.to(dtype)
    # Scaled before: it has fewer elements.
    left_MR = left_MR if scaling == 1.0 else left_MR * scaling
    return linear(left_MR, right_FR.to(dtype), None)


def add_sum_over_rows_(
    target_RD: Tensor, left_NR: Tensor, right_ND: Tensor, scaling: float
) -> None:
    """``target += scaling * left^T right`` in the target's fp32.

    Shapes:
        Both with rows at aligned addresses.
    """
    if left_NR.is_cuda:
        if left_NR.dtype == target_RD.dtype:
            target_RD.addmm_(left_NR.t(), right_ND, alpha=scaling)
        else:
            product_RD = torch.mm(left_NR.t(), right_ND, out_dtype=target_RD.dtype)
            target_RD.add_(product_RD, alpha=scaling)
        return
    left_NR, right_ND = left_NR.float(), right_ND.float()
    num_rows, lora_rank = left_NR.shape
    num_compiled = 0
    if 2 * num_rows * lora_rank * right_ND.shape[1] > _MAX_UNCOMPILED_FLOPS:
        step = _rows_step(num_rows)
        num_compiled = num_rows // step * step
    if num_compiled > 0:
        product_RD = linear(left_NR[:num_compiled].t(), right_ND[:num_compiled].t(), None)
        target_RD.add_(product_RD, alpha=scaling)
    if num_compiled < num_rows:
        left_RN = left_NR[num_compiled:].t()
        target_RD.addmm_(left_RN, right_ND[num_compiled:], alpha=scaling)
