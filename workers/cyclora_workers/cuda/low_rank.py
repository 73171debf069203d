"""The low-rank part of a linear layer for all segments at once, forward and backward.

::

    y[rows] += scaling * (x[rows] A^T) B^T                           of each segment's rows
    dlow = scaling * dy B;  dx += dlow A;  dA += dlow^T x;  dB += scaling * dy^T (x A^T)

A product per segment is right for few long segments; for many short ones its launches, four to a
segment and layer, take longer than the arithmetic.

Legend: T packed tokens, D features in, F features out, W largest lora_rank, P partial sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cyclora_workers.context import Segment
from cyclora_workers.cuda.segment_table import SegmentTable

MAX_GROUPED_ROWS = 1024
"""From this many rows per segment on, a matrix product of its own keeps a GPU busy."""

_FEW_ROWS = 1024
_NUM_PARTIALS_OF_FEW_ROWS = 8
"""Few rows make few tiles, so the sum over the features is shared out as well."""

_BLOCK_K = 64
_LEAST_BLOCK_R = 16
_MOST_BLOCK_R = 64

_A, _B, _GRADIENT_A, _GRADIENT_B = range(4)


def is_grouped(segments: Sequence[Segment]) -> bool:
    """Whether a pass is better computed by these kernels than segment by segment."""
    rows = [each.stop - each.start for each in segments if each.adapter is not None]
    return len(rows) > 1 and sum(rows) < MAX_GROUPED_ROWS * len(rows)


@dataclass(frozen=True, slots=True)
class LowRank:
    """One target module in one pass."""

    table: SegmentTable
    module_index: int

    @classmethod
    def of(cls, table: SegmentTable, module_name: str) -> LowRank:
        """The module of this name."""
        return cls(table, table.module_indices[module_name])

    @property
    def is_trained(self) -> bool:
        """Whether an adapter of the pass gets gradients on this module."""
        return bool(self.table.is_trained_M[self.module_index])

    def add_(self, y_TF: Tensor, x_TD: Tensor) -> Tensor:
        """Add the low-rank part to the base output in place; returns x A^T.

        Shapes:
            y_TF in x's dtype, or fp32; the features of a row contiguous. Returns [P, T, W]: sums to
            x A^T over P; what lies outside of segments and their lora_rank is undefined.
        """
        low_PTW = self._shrink(x_TD, _A, by_column=False, is_scaled=False)
        self._expand(low_PTW, y_TF, _B, x_TD, by_column=True, is_scaled=True)
        return low_PTW

    def add_input_gradient_(self, dx_TD: Tensor, dlow_PTW: Tensor) -> None:
        """Add what flows back through A to the input's gradient in place."""
        self._expand(dlow_PTW, dx_TD, _A, dx_TD, by_column=False, is_scaled=False)

    def low_gradient(self, dy_TF: Tensor) -> Tensor:
        """D loss / d (x A^T), with the scaling in it. Shapes: as ``add_`` returns."""
        return self._shrink(dy_TF, _B, by_column=True, is_scaled=True)

    def accumulate_(self, dy_TF: Tensor, x_TD: Tensor, low_PTW: Tensor, dlow_PTW: Tensor) -> None:
        """Add the gradients of A and B to the adapters' fp32 buffers."""
        self._accumulate(_whole(dlow_PTW, x_TD.dtype), x_TD, _GRADIENT_A, by_column=False)
        self._accumulate(_whole(low_PTW, dy_TF.dtype), dy_TF, _GRADIENT_B, by_column=True)

    def _shrink(self, x_TK: Tensor, matrix: int, *, by_column: bool, is_scaled: bool) -> Tensor:
        table, width = self.table, max(self.table.size.max_lora_rank, 1)
        num_rows, num_columns = x_TK.shape
        partials = _NUM_PARTIALS_OF_FEW_ROWS if num_rows < _FEW_ROWS else 1
        dtype = torch.float32 if partials > 1 else x_TK.dtype
        low_PTW = x_TK.new_empty(partials, num_rows, width, dtype=dtype)
        block_r = _block_r(width)
        grid = (table.size.num_tiles, -(-width // block_r), partials)
        if table.size.num_tiles:
            _kernels().shrink[grid](
                x_TK,
                low_PTW,
                table.addresses_4MS[matrix, self.module_index],
                table.stops_S,
                table.ranks_S,
                table.scalings_S,
                table.tile_segments_L,
                table.tile_starts_L,
                num_columns,
                x_TK.stride(0),
                low_PTW.stride(1),
                low_PTW.stride(0),
                1,
                BY_COLUMN=by_column,
                IS_SCALED=is_scaled,
                NUM_PARTIALS=partials,
                BLOCK_M=table.block_rows,
                BLOCK_R=block_r,
                BLOCK_K=_BLOCK_K,
            )
        return low_PTW

    def _expand(
        self,
        low_PTW: Tensor,
        y_TK: Tensor,
        matrix: int,
        like: Tensor,
        *,
        by_column: bool,
        is_scaled: bool,
    ) -> None:
        """``like`` has the dtype of the matrices."""
        table, num_columns = self.table, y_TK.shape[1]
        grid = (table.size.num_tiles, -(-num_columns // _BLOCK_K))
        if table.size.num_tiles:
            _kernels().expand[grid](
                low_PTW,
                y_TK,
                like,
                table.addresses_4MS[matrix, self.module_index],
                table.stops_S,
                table.ranks_S,
                table.scalings_S,
                table.tile_segments_L,
                table.tile_starts_L,
                num_columns,
                low_PTW.stride(1),
                low_PTW.stride(0),
                y_TK.stride(0),
                1,
                BY_COLUMN=by_column,
                IS_SCALED=is_scaled,
                NUM_PARTIALS=low_PTW.shape[0],
                BLOCK_M=table.block_rows,
                BLOCK_R=_block_r(low_PTW.shape[2]),
                BLOCK_K=_BLOCK_K,
            )

    def _accumulate(self, low_TW: Tensor, wide_TK: Tensor, matrix: int, *, by_column: bool) -> None:
        table, num_columns = self.table, wide_TK.shape[1]
        block_r = _block_r(low_TW.shape[1])
        grid = (table.num_owners, -(-num_columns // _BLOCK_K), -(-low_TW.shape[1] // block_r))
        if table.num_owners:
            _kernels().accumulate[grid](
                low_TW,
                wide_TK,
                table.scalings_S,
                table.addresses_4MS[matrix, self.module_index],
                table.starts_S,
                table.stops_S,
                table.ranks_S,
                table.scalings_S,
                table.owner_bounds_U,
                table.owner_segments_S,
                num_columns,
                low_TW.stride(0),
                wide_TK.stride(0),
                1,
                BY_COLUMN=by_column,
                IS_SCALED=by_column,
                BLOCK_M=table.block_rows,
                BLOCK_R=block_r,
                BLOCK_K=_BLOCK_K,
            )


def _kernels() -> Any:
    """Imported when first launched: without a GPU there may be no Triton."""
    from cyclora_workers.cuda import low_rank_kernels

    return low_rank_kernels


def _block_r(width: int) -> int:
    """Ranks in one product: a power of 2."""
    return min(max(_LEAST_BLOCK_R, 1 << (width - 1).bit_length()), _MOST_BLOCK_R)


def _whole(low_PTW: Tensor, dtype: torch.dtype) -> Tensor:
    return low_PTW[0] if low_PTW.shape[0] == 1 else low_PTW.sum(0).to(dtype)
