"""Attention of a pass of samples to a paged KV cache: chunks of prompts and rows that decode alike.

Legend: T packed tokens, N query heads, G key-value heads, H head size, P parts of a sequence's
keys, Y places for tokens in the tiles of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cyclora_workers.cuda.span_table import (
    DECODE_QUERIES,
    PART_TOKENS,
    PagedShape,
    SpanTable,
)
from cyclora_workers.sampling.step_rows import PagedSpan, slots_of
from cyclora_workers.transfer import to_device

_KEYS_PER_ROUND = 64
_NO_WINDOW = 2**30
_NO_SLOT = -1


class PagedPool(Protocol):
    """Where the keys and values of all sequences lie; ``sampling.kv_pool.KvPool`` is one."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        ...

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [blocks, block_tokens, G, H] each, strided alike.

        The last dimension is contiguous.
        """
        ...


class PagedAttention:
    """Implements ``AttentionPlan``; writes the pass's keys and values into the pool first.

    Rows that decode and chunks of prompts are launched apart, as they need tiles of other sizes.
    Rows that no span covers return zeros.
    """

    def __init__(
        self,
        pool: PagedPool,
        num_rows: int,
        shapes: Sequence[PagedShape],
        heads_per_group: int,
        device: torch.device,
    ) -> None:
        """Make room for the spans of ``fill``.

        Args:
            pool: where keys and values are.
            num_rows: planned rows; a pass may have more.
            shapes: one for spans of one token, one for longer ones; those that do not occur are
                left out.
            heads_per_group: query heads per key-value head.
            device: where the pass runs.
        """
        self._pool = pool
        self._heads_per_group = heads_per_group
        self._device = device
        self._tables = [SpanTable(shape, pool.block_tokens, device) for shape in shapes]
        self._slots_T = torch.full((num_rows,), _NO_SLOT, dtype=torch.int64, device=device)

    @classmethod
    def of(
        cls,
        pool: PagedPool,
        spans: Sequence[PagedSpan],
        heads_per_group: int,
        device: torch.device,
    ) -> PagedAttention:
        """The plan of one pass."""
        num_rows = max(span.stop for span in spans)
        shapes = [
            PagedShape.fitting(alike, heads_per_group, pool.block_tokens) for alike in _alike(spans)
        ]
        plan = cls(pool, num_rows, shapes, heads_per_group, device)
        plan.fill(spans)
        return plan

    def fill(self, spans: Sequence[PagedSpan]) -> None:
        """Describe another pass that fits into the shapes."""
        for table, alike in zip(self._tables, _alike(spans), strict=True):
            table.fill(alike)
        num_rows, block_tokens = self._slots_T.shape[0], self._pool.block_tokens
        slots_T = slots_of(spans, num_rows, block_tokens, _NO_SLOT)
        self._slots_T.copy_(to_device(torch.from_numpy(slots_T), self._device))

    def attend(
        self,
        layer_index: int,
        query_NTH: Tensor,
        key_GTH: Tensor,
        value_GTH: Tensor,
        scaling: float,
        sliding_window: int | None,
        sinks_N: Tensor | None = None,
    ) -> Tensor:
        """Implements ``AttentionPlan.attend``."""
        key_pool, value_pool = self._pool.layer(layer_index)
        assert key_pool.stride() == value_pool.stride(), "pools must be strided alike"
        num_heads, num_rows, head_size = query_NTH.shape
        assert num_heads == key_GTH.shape[0] * self._heads_per_group, "planned for other heads"
        self._write(key_GTH, value_GTH, key_pool, value_pool)
        out_TNH = query_NTH.new_zeros(num_rows, num_heads, head_size)
        for table in self._tables:
            # Sinks are one more part, of value zero.
            is_joined = table.shape.num_parts > 1 or sinks_N is not None
            parts_PYNH, lse_PYN = _room_for_parts(table, out_TNH) if is_joined else (out_TNH,) * 2
            self._launch(
                table, query_NTH, key_pool, value_pool, parts_PYNH, lse_PYN,
                scaling, sliding_window, is_joined=is_joined,
            )  # fmt: skip
            if is_joined:
                _join(table, parts_PYNH, lse_PYN, sinks_N, out_TNH)
        return out_TNH

    def _launch(
        self,
        table: SpanTable,
        query_NTH: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        out: Tensor,
        lse: Tensor,
        scaling: float,
        sliding_window: int | None,
        *,
        is_joined: bool,
    ) -> None:
        shape, head_size = table.shape, query_NTH.shape[2]
        num_groups = query_NTH.shape[0] // self._heads_per_group
        block_h = _power_of_two(head_size)
        _kernels().attend[(shape.num_tiles, num_groups, shape.num_parts)](
            query_NTH,
            key_pool,
            value_pool,
            out,
            lse,
            table.block_tables_SB,
            table.tile_sequences_L,
            table.tile_rows_L,
            table.tile_counts_L,
            table.tile_positions_L,
            scaling,
            _NO_WINDOW if sliding_window is None else sliding_window,
            PART_TOKENS if shape.num_parts > 1 else _NO_WINDOW,
            shape.tokens_per_tile,
            table.block_tables_SB.stride(0),
            query_NTH.stride(1),
            query_NTH.stride(0),
            key_pool.stride(0),
            key_pool.stride(1),
            key_pool.stride(2),
            head_size,
            HEADS=self._heads_per_group,
            IS_JOINED=is_joined,
            BLOCK_TOKENS=self._pool.block_tokens,
            BLOCK_Q=_power_of_two(
                max(DECODE_QUERIES, shape.tokens_per_tile * self._heads_per_group)
            ),
            BLOCK_L=_KEYS_PER_ROUND,
            BLOCK_H=block_h,
            num_stages=_num_stages(block_h * key_pool.element_size()),
        )

    def _write(
        self, key_GTH: Tensor, value_GTH: Tensor, key_pool: Tensor, value_pool: Tensor
    ) -> None:
        num_groups, _, head_size = key_GTH.shape
        _kernels().write[(self._slots_T.shape[0], num_groups)](
            key_GTH,
            value_GTH,
            key_pool,
            value_pool,
            self._slots_T,
            key_GTH.stride(1),
            key_GTH.stride(0),
            value_GTH.stride(1),
            value_GTH.stride(0),
            key_pool.stride(0),
            key_pool.stride(1),
            key_pool.stride(2),
            head_size,
            BLOCK_TOKENS=self._pool.block_tokens,
            BLOCK_H=_power_of_two(head_size),
        )


def _alike(spans: Sequence[PagedSpan]) -> list[list[PagedSpan]]:
    """Rows that decode, then chunks of prompts; what does not occur is left out."""
    decodes = [span for span in spans if span.num_tokens == 1]
    chunks = [span for span in spans if span.num_tokens > 1]
    return [alike for alike in (decodes, chunks) if alike]


def _room_for_parts(table: SpanTable, out_TNH: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes: [P, Y, N, H] and [P, Y, N], fp32."""
    shape, (_, num_heads, head_size) = table.shape, out_TNH.shape
    num_places = shape.num_tiles * shape.tokens_per_tile
    size = (shape.num_parts, num_places, num_heads)
    return (
        out_TNH.new_empty(*size, head_size, dtype=torch.float32),
        out_TNH.new_empty(size, dtype=torch.float32),
    )


def _join(
    table: SpanTable,
    parts_PYNH: Tensor,
    lse_PYN: Tensor,
    sinks_N: Tensor | None,
    out_TNH: Tensor,
) -> None:
    num_parts, num_places, num_heads, head_size = parts_PYNH.shape
    _kernels().join[(num_places, num_heads)](
        parts_PYNH,
        lse_PYN,
        lse_PYN if sinks_N is None else sinks_N,
        out_TNH,
        table.tile_rows_L,
        table.tile_counts_L,
        table.shape.tokens_per_tile,
        num_parts,
        lse_PYN.stride(0),
        head_size,
        HAS_SINKS=sinks_N is not None,
        BLOCK_H=_power_of_two(head_size),
    )


def _num_stages(row_bytes: int) -> int:
    """Rounds of keys and values that are loaded ahead: as many as fit into shared memory."""
    return max(1, min(3, 768 // row_bytes))


def _power_of_two(number: int) -> int:
    """The next power of 2; a product's sides are at least 16."""
    return max(16, 1 << (number - 1).bit_length())


def _kernels() -> Any:
    """Imported when first launched: without a GPU there may be no Triton."""
    from cyclora_workers.cuda import paged_kernels

    return paged_kernels
