"""What the attention kernels need to know of a pass's spans, on the device: block tables and tiles.

Legend: S sequences, B blocks of a sequence, L tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cyclora_workers.sampling.step_rows import PagedSpan
from cyclora_workers.transfer import to_device

PART_TOKENS = 1024
"""Keys that one program attends to when decoding: few rows with long contexts are shared out over
the GPU. Fixed, so that a row's sums do not depend on its neighbours' lengths."""

PREFILL_QUERIES = 64
DECODE_QUERIES = 16
"""Queries of a tile; tensor cores take no fewer than 16."""


@dataclass(frozen=True, slots=True)
class PagedShape:
    """Sizes of a table; what a captured graph fixes."""

    num_sequences: int
    num_blocks: int
    num_tiles: int
    tokens_per_tile: int
    num_parts: int

    @classmethod
    def fitting(
        cls, spans: Sequence[PagedSpan], heads_per_group: int, block_tokens: int
    ) -> PagedShape:
        """Exactly what these need; keys are cut in parts only where every span is one token."""
        longest = max(span.last_position + 1 for span in spans)
        if all(span.num_tokens == 1 for span in spans):
            return cls.decode(len(spans), longest, block_tokens)
        tokens = max(1, PREFILL_QUERIES // heads_per_group)
        return cls(
            num_sequences=len(spans),
            num_blocks=-(-longest // block_tokens),
            num_tiles=sum(-(-span.num_tokens // tokens) for span in spans),
            tokens_per_tile=tokens,
            num_parts=1,
        )

    @classmethod
    def decode(cls, num_rows: int, max_tokens: int, block_tokens: int) -> PagedShape:
        """Room for up to ``num_rows`` decoding sequences of up to ``max_tokens`` tokens."""
        return cls(
            num_sequences=num_rows,
            num_blocks=-(-max_tokens // block_tokens),
            num_tiles=num_rows,
            tokens_per_tile=1,
            num_parts=-(-max_tokens // PART_TOKENS),
        )


class SpanTable:
    """Spans that fit into a shape.

    What is beyond the spans that were filled in last keeps what it had: a tile without tokens
    reads nothing.

    Shapes:
        block_tables_SB; tile_sequences_L, tile_rows_L, tile_counts_L and tile_positions_L, which
        say where a tile's first token is and how many it has: int32 all.
    """

    def __init__(self, shape: PagedShape, block_tokens: int, device: torch.device) -> None:
        self.shape = shape
        self._block_tokens = block_tokens
        self._device = device
        self._host_SB = np.zeros((shape.num_sequences, shape.num_blocks), np.int32)
        self._filled: list[tuple[Sequence[int], int]] = [((), 0)] * shape.num_sequences
        self.block_tables_SB = torch.zeros(self._host_SB.shape, dtype=torch.int32, device=device)
        self._tiles_4L = torch.zeros(4, shape.num_tiles, dtype=torch.int32, device=device)
        (
            self.tile_sequences_L,
            self.tile_rows_L,
            self.tile_counts_L,
            self.tile_positions_L,
        ) = self._tiles_4L

    def fill(self, spans: Sequence[PagedSpan]) -> None:
        """Describe another pass that fits."""
        self._fill_tables(spans)
        step = self.shape.tokens_per_tile
        if step == 1 and all(span.num_tokens == 1 for span in spans):
            tiles = [(i, span.start, 1, span.first_position) for i, span in enumerate(spans)]
        else:
            tiles = [
                (
                    sequence,
                    span.start + offset,
                    min(step, span.num_tokens - offset),
                    span.first_position + offset,
                )
                for sequence, span in enumerate(spans)
                for offset in range(0, span.num_tokens, step)
            ]
        assert len(tiles) <= self.shape.num_tiles, "too many tiles for the table"
        tiles_4L = np.zeros((4, self.shape.num_tiles), np.int32)
        tiles_4L[:, : len(tiles)] = np.asarray(tiles, np.int32).T
        self._tiles_4L.copy_(self._sent(tiles_4L))

    def _fill_tables(self, spans: Sequence[PagedSpan]) -> None:
        """Only what is new: most rows have the blocks that they had a step ago, or one more."""
        assert len(spans) <= self.shape.num_sequences, "too many sequences for the table"
        is_changed, longest = False, 0
        for sequence, span in enumerate(spans):
            num_used = span.last_position // self._block_tokens + 1
            assert num_used <= min(len(span.blocks), self.shape.num_blocks), "blocks are missing"
            longest = max(longest, num_used)
            blocks, num_filled = self._filled[sequence]
            if blocks is not span.blocks:
                num_filled = 0
            if num_filled < num_used:
                self._host_SB[sequence, num_filled:num_used] = span.blocks[num_filled:num_used]
                self._filled[sequence] = (span.blocks, num_used)
                is_changed = True
        if is_changed:
            used = (slice(0, len(spans)), slice(0, longest))
            self.block_tables_SB[used].copy_(self._sent(self._host_SB[used]))

    def _sent(self, host: NDArray[np.int32]) -> torch.Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(host)), self._device)
