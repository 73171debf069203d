"""Attention of a pass of samples to a paged KV cache: chunks of prompts and rows that decode alike.

Legend: T packed tokens, S sequences, B blocks of a sequence, L tiles, N query heads, G key-value
heads, H head size, P parts of a sequence's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cyclora_workers.attention import UnsupportedAttention
from cyclora_workers.transfer import to_device

PART_TOKENS = 1024
"""Keys that one program attends to when decoding: few rows with long contexts are shared out over
the GPU. Fixed, so that a row's sums do not depend on its neighbours' lengths."""

PREFILL_QUERIES = 64
DECODE_QUERIES = 16
"""Queries of a tile; tensor cores take no fewer than 16."""

_KEYS_PER_ROUND = 64
_NO_WINDOW = 2**30
_NO_SLOT = -1


class PagedPool(Protocol):
    """Where the keys and values of all sequences lie."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        ...

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [blocks, block_tokens, G, H] each, strided alike.

        The last dimension is contiguous.
        """
        ...


@dataclass(frozen=True, slots=True)
class PagedSpan:
    """Packed tokens [start, stop) are one sequence's tokens from position ``first`` on.

    ``block_ids`` are the sequence's blocks in order, enough for its last token here.
    """

    start: int
    stop: int
    first: int
    block_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class PagedShape:
    """Sizes of a plan's tensors; what a captured graph fixes."""

    num_rows: int
    num_sequences: int
    num_blocks: int
    num_tiles: int
    tokens_per_tile: int
    num_parts: int

    @classmethod
    def fitting(
        cls, spans: Sequence[PagedSpan], num_rows: int, heads_per_group: int, block_tokens: int
    ) -> PagedShape:
        """Exactly what a pass needs; keys are cut in parts only where every span is one token."""
        is_decode = all(span.stop - span.start == 1 for span in spans)
        tokens = _tokens_per_tile(heads_per_group, is_decode=is_decode)
        longest = max((span.first + span.stop - span.start for span in spans), default=0)
        return cls(
            num_rows=num_rows,
            num_sequences=len(spans),
            num_blocks=-(-longest // block_tokens),
            num_tiles=sum(-(-(span.stop - span.start) // tokens) for span in spans),
            tokens_per_tile=tokens,
            num_parts=max(1, -(-longest // PART_TOKENS)) if is_decode else 1,
        )

    @classmethod
    def decode(
        cls, num_rows: int, max_tokens: int, heads_per_group: int, block_tokens: int
    ) -> PagedShape:
        """Room for up to ``num_rows`` decoding sequences of up to ``max_tokens`` tokens."""
        return cls(
            num_rows=num_rows,
            num_sequences=num_rows,
            num_blocks=-(-max_tokens // block_tokens),
            num_tiles=num_rows,
            tokens_per_tile=_tokens_per_tile(heads_per_group, is_decode=True),
            num_parts=max(1, -(-max_tokens // PART_TOKENS)),
        )


class PagedAttention:
    """Implements ``AttentionPlan``; writes the pass's keys and values into the pool first.

    Rows that no span covers return zeros.
    """

    def __init__(
        self, pool: PagedPool, shape: PagedShape, heads_per_group: int, device: torch.device
    ) -> None:
        self._pool = pool
        self._shape = shape
        self._heads_per_group = heads_per_group
        self._device = device
        self._block_tables_SB = torch.zeros(
            shape.num_sequences, shape.num_blocks, dtype=torch.int32, device=device
        )
        self._tiles_4L = torch.zeros(4, shape.num_tiles, dtype=torch.int32, device=device)
        self._slots_T = torch.full((shape.num_rows,), _NO_SLOT, dtype=torch.int64, device=device)

    @classmethod
    def of(
        cls,
        pool: PagedPool,
        spans: Sequence[PagedSpan],
        num_rows: int,
        heads_per_group: int,
        device: torch.device,
    ) -> PagedAttention:
        """The plan of one pass."""
        shape = PagedShape.fitting(spans, num_rows, heads_per_group, pool.block_tokens)
        plan = cls(pool, shape, heads_per_group, device)
        plan.fill(spans)
        return plan

    def fill(self, spans: Sequence[PagedSpan]) -> None:
        """Describe another pass that fits into the shape."""
        shape, block_tokens = self._shape, self._pool.block_tokens
        assert len(spans) <= shape.num_sequences, "too many sequences for the plan"
        tables_SB = np.zeros((shape.num_sequences, shape.num_blocks), np.int32)
        slots_T = np.full(shape.num_rows, _NO_SLOT, np.int64)
        tiles: list[tuple[int, int, int, int]] = []
        for sequence, span in enumerate(spans):
            num_tokens = span.stop - span.start
            num_used = -(-(span.first + num_tokens) // block_tokens)
            assert num_used <= min(len(span.block_ids), shape.num_blocks), "blocks are missing"
            tables_SB[sequence, :num_used] = span.block_ids[:num_used]
            positions = np.arange(span.first, span.first + num_tokens)
            blocks = tables_SB[sequence, positions // block_tokens].astype(np.int64)
            slots_T[span.start : span.stop] = blocks * block_tokens + positions % block_tokens
            for offset in range(0, num_tokens, shape.tokens_per_tile):
                count = min(shape.tokens_per_tile, num_tokens - offset)
                tiles.append((sequence, span.start + offset, count, span.first + offset))
        assert len(tiles) <= shape.num_tiles, "too many tiles for the plan"
        tiles_4L = np.zeros((4, shape.num_tiles), np.int32)
        tiles_4L[:, : len(tiles)] = np.asarray(tiles, np.int32).reshape(-1, 4).T
        self._copy(self._block_tables_SB, tables_SB)
        self._copy(self._tiles_4L, tiles_4L)
        self._copy(self._slots_T, slots_T)

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
        """Implements ``AttentionPlan.attend``.

        Raises:
            UnsupportedAttention: the model has sinks.
        """
        if sinks_N is not None:
            raise UnsupportedAttention("paged attention on a GPU does not compute sinks")
        key_pool, value_pool = self._pool.layer(layer_index)
        self._write(key_GTH, value_GTH, key_pool, value_pool)
        num_heads, num_rows, head_size = query_NTH.shape
        assert num_heads == key_GTH.shape[0] * self._heads_per_group, "planned for other heads"
        shape = self._shape
        is_whole = shape.num_parts == 1
        parts_PTNH = query_NTH.new_zeros(
            (shape.num_parts, num_rows, num_heads, head_size),
            dtype=query_NTH.dtype if is_whole else torch.float32,
        )
        lse_PTN = torch.full_like(parts_PTNH[..., 0], float("-inf"), dtype=torch.float32)
        block_h = _power_of_two(head_size)
        sequences_L, rows_L, counts_L, positions_L = self._tiles_4L
        _kernels().attend[(shape.num_tiles, key_GTH.shape[0], shape.num_parts)](
            query_NTH,
            key_pool,
            value_pool,
            parts_PTNH,
            lse_PTN,
            self._block_tables_SB,
            sequences_L,
            rows_L,
            counts_L,
            positions_L,
            scaling,
            _NO_WINDOW if sliding_window is None else sliding_window,
            _NO_WINDOW if is_whole else PART_TOKENS,
            self._block_tables_SB.stride(0),
            query_NTH.stride(1),
            query_NTH.stride(0),
            key_pool.stride(0),
            key_pool.stride(1),
            key_pool.stride(2),
            parts_PTNH.stride(0),
            parts_PTNH.stride(1),
            head_size,
            HEADS=self._heads_per_group,
            BLOCK_TOKENS=self._pool.block_tokens,
            BLOCK_Q=_power_of_two(
                max(DECODE_QUERIES, shape.tokens_per_tile * self._heads_per_group)
            ),
            BLOCK_L=_KEYS_PER_ROUND,
            BLOCK_H=block_h,
            num_stages=_num_stages(block_h * key_pool.element_size()),
        )
        if is_whole:
            return parts_PTNH[0]
        out_TNH = query_NTH.new_empty(num_rows, num_heads, head_size)
        _kernels().join[(num_rows * num_heads,)](
            parts_PTNH,
            lse_PTN,
            out_TNH,
            shape.num_parts,
            parts_PTNH.stride(0),
            head_size,
            BLOCK_H=block_h,
        )
        return out_TNH

    def _write(
        self, key_GTH: Tensor, value_GTH: Tensor, key_pool: Tensor, value_pool: Tensor
    ) -> None:
        num_groups, _, head_size = key_GTH.shape
        assert key_pool.stride() == value_pool.stride(), "pools must be strided alike"
        _kernels().write[(self._shape.num_rows, num_groups)](
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

    def _copy(self, target: Tensor, host: NDArray[np.generic]) -> None:
        target.copy_(to_device(torch.from_numpy(host), self._device))


def _tokens_per_tile(heads_per_group: int, *, is_decode: bool) -> int:
    return 1 if is_decode else max(1, PREFILL_QUERIES // heads_per_group)


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
