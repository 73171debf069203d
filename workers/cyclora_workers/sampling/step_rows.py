"""What one pass of the sampler computes: packed tokens, whose they are, and where they lie.

Legend: T packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyclora_core.payload import Array
from cyclora_workers.context import Segment


@dataclass(frozen=True, slots=True)
class PagedSpan:
    """Packed tokens [start, stop) at consecutive positions of one row, from ``first_position`` on.

    ``blocks`` is the row's block table, with room for these tokens. It may grow later, but what is
    in it stays as it is.
    """

    start: int
    stop: int
    first_position: int
    blocks: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def last_position(self) -> int:
        return self.first_position + self.num_tokens - 1


@dataclass(frozen=True, slots=True)
class StepRows:
    """The packed tokens of one pass, with their positions, spans and segments, all in order."""

    tokens: Sequence[int]
    positions: Sequence[int]
    spans: Sequence[PagedSpan]
    segments: Sequence[Segment]

    @property
    def is_decode(self) -> bool:
        """Whether every span is one token."""
        return len(self.spans) == len(self.tokens)


def slots_of(spans: Sequence[PagedSpan], num_rows: int, block_tokens: int, no_slot: int) -> Array:
    """Where each packed token's keys and values go: a block's number times its size, plus a place.

    Shapes:
        [num_rows] int64; ``no_slot`` for rows that no span covers.
    """
    slots_T = np.full(num_rows, no_slot, np.int64)
    for span in spans:
        if span.num_tokens == 1:  # most spans; whole arrays would cost more than they do
            block, offset = divmod(span.first_position, block_tokens)
            slots_T[span.start] = span.blocks[block] * block_tokens + offset
            continue
        positions = np.arange(span.first_position, span.last_position + 1)
        blocks = np.asarray(span.blocks, np.int64)[positions // block_tokens]
        slots_T[span.start : span.stop] = blocks * block_tokens + positions % block_tokens
    return slots_T
