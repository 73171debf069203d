"""The packed tokens of one engine step, and which of its rows draw a token.

Legend: T packed tokens, S rows that draw, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from cyclora_core.payload import Array
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.context import Segment
from cyclora_workers.sampling.request import Row, SampleRequest


@dataclass(frozen=True, slots=True)
class PrefillPart:
    """The next ``num_tokens`` prompt tokens of a request."""

    request: SampleRequest
    num_tokens: int

    @property
    def first(self) -> int:
        return self.request.cache.num_prefilled

    @property
    def completes_prompt(self) -> bool:
        return self.first + self.num_tokens == self.request.num_prompt_tokens

    @property
    def tokens(self) -> Array:
        return self.request.prompt_tokens[self.first : self.first + self.num_tokens]

    @property
    def positions(self) -> Array:
        return np.arange(self.first, self.first + self.num_tokens)

    def draws(self, start: int) -> list[Draw]:
        """All rows draw their first token from the prompt's last position."""
        if not self.completes_prompt or self.request.stop_rules.max_tokens == 0:
            return []
        return [Draw(self.request, start + self.num_tokens - 1, self.request.rows)]


@dataclass(frozen=True, slots=True)
class DecodePart:
    """The newest token of each of a request's rows."""

    request: SampleRequest

    @property
    def num_tokens(self) -> int:
        return len(self.request.rows)

    @property
    def tokens(self) -> Array:
        return np.asarray([row.tokens[-1] for row in self.request.rows], np.int64)

    @property
    def positions(self) -> Array:
        cache = self.request.cache
        return np.full(self.num_tokens, cache.num_prompt_tokens + cache.num_new_tokens)

    def draws(self, start: int) -> list[Draw]:
        return [Draw(self.request, start + i, [row]) for i, row in enumerate(self.request.rows)]


Part = PrefillPart | DecodePart


@dataclass(frozen=True, slots=True)
class Draw:
    """Rows of a request that draw from the logits of one packed position."""

    request: SampleRequest
    position: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """A part and its place among the packed tokens."""

    part: Part
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.part.num_tokens

    @property
    def adapter(self) -> AdapterWeights | None:
        return self.part.request.adapter


def place(parts: Sequence[Part]) -> list[PlacedPart]:
    """Lay parts end to end, those of one adapter next to each other."""
    by_adapter: dict[int, list[Part]] = {}
    for part in parts:
        by_adapter.setdefault(id(part.request.adapter), []).append(part)
    placed: list[PlacedPart] = []
    start = 0
    for part in (part for group in by_adapter.values() for part in group):
        placed.append(PlacedPart(part, start))
        start = placed[-1].stop
    return placed


def segments_of(sizes: Sequence[tuple[AdapterWeights | None, int]]) -> list[Segment]:
    """Segments of consecutive rows; neighbours with the same adapter share one."""
    segments: list[Segment] = []
    start = 0
    for _, group in groupby(sizes, key=lambda each: id(each[0])):
        members = list(group)
        stop = start + sum(size for _, size in members)
        segments.append(Segment(start, stop, members[0][0]))
        start = stop
    return segments


def in_chunks(draws: Sequence[Draw], max_rows: int) -> Iterator[Sequence[Draw]]:
    for begin in range(0, len(draws), max_rows):
        yield draws[begin : begin + max_rows]
