"""The packed tokens of one engine step, and which of its rows draw a token.

Legend: T packed tokens, S rows that draw, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.context import Segment
from cyclora_workers.sampling.request import Row, SampleRequest
from cyclora_workers.sampling.step_rows import PagedSpan, StepRows


@dataclass(frozen=True, slots=True)
class PrefillPart:
    """The next ``num_tokens`` tokens of a row that has more than its newest one to compute.

    Those of its prompt, or of all that it had before it lost its memory to another row.
    """

    row: Row
    num_tokens: int

    @property
    def request(self) -> SampleRequest:
        return self.row.request

    @property
    def rows(self) -> list[Row]:
        return [self.row]

    @property
    def num_tokens_each(self) -> int:
        return self.num_tokens

    @property
    def completes_row(self) -> bool:
        return self.num_tokens == self.row.num_pending

    def tokens(self) -> list[int]:
        first = self.row.num_cached
        tokens: list[int] = self.row.all_tokens()[first : first + self.num_tokens].tolist()
        return tokens

    def positions(self) -> Iterable[int]:
        return range(self.row.num_cached, self.row.num_cached + self.num_tokens)

    def spans(self, start: int) -> list[PagedSpan]:
        row = self.row
        return [PagedSpan(start, start + self.num_tokens, row.num_cached, row.blocks)]

    def draws(self, start: int) -> list[Draw]:
        """All rows draw their first token from the last position of their prompt."""
        request = self.request
        if not self.completes_row or request.stop_rules.max_tokens == 0:
            return []
        rows = self.rows if request.has_prompt else request.rows
        return [Draw(request, start + self.num_tokens - 1, rows)]


@dataclass(frozen=True, slots=True)
class DecodePart:
    """The newest token of each of these rows of a request."""

    request: SampleRequest
    rows: Sequence[Row]

    @property
    def num_tokens(self) -> int:
        return len(self.rows)

    @property
    def num_tokens_each(self) -> int:
        return 1

    def tokens(self) -> list[int]:
        return [row.tokens[-1] for row in self.rows]

    def positions(self) -> Iterable[int]:
        return [row.num_cached for row in self.rows]

    def spans(self, start: int) -> list[PagedSpan]:
        return [
            PagedSpan(place, place + 1, row.num_cached, row.blocks)
            for place, row in enumerate(self.rows, start)
        ]

    def draws(self, start: int) -> list[Draw]:
        return [Draw(self.request, place, [row]) for place, row in enumerate(self.rows, start)]


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


def rows_of(placed: Sequence[PlacedPart]) -> StepRows:
    """What the base model is given of these parts."""
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[PagedSpan] = []
    for each in placed:
        tokens += each.part.tokens()
        positions += each.part.positions()
        spans += each.part.spans(each.start)
    segments = segments_of([(each.adapter, each.part.num_tokens) for each in placed])
    return StepRows(tokens, positions, spans, segments)


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
