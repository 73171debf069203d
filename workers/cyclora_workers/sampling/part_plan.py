"""Which queries of a pass attend to which parts of the paged KV cache, and in which calls.

Keys fall into parts of ``PART_TOKENS`` by their position. A query attends to each part that it
sees by itself. A part that several queries see, as siblings see their prompt, is read once for all
of them. The last part is cut off at the end of the query's tile of ``TILE_TOKENS``, and masked.

What a query's sums run over so depends on its position alone: a token has the same bits alone and
beside others, prefilled in any chunks and decoded, computed and found in blocks that somebody else
computed (docs/decisions/0034-paged-samples.md).

Legend: M query heads per key-value head, C tiles of one call, Q queries of a tile, K keys of a
tile, P parts of a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclora_core.payload import Array
from cyclora_workers.sampling.kv_pool import BLOCK_TOKENS, ZERO_BLOCK
from cyclora_workers.sampling.step_rows import PagedSpan
from cyclora_workers.transfer import to_device

PART_TOKENS = 256
"""Longer parts join fewer results, and let siblings share less of their prompt."""

TILE_TOKENS = 64
"""Queries at positions [64 i, 64 (i + 1)) see keys up to the end of this tile of their part, the
later ones masked: how long a sum is changes its bits."""

QUERY_ALIGNMENT = 4
"""Query heads of a tile are padded to a multiple of this.

On CPU a product of fewer rows takes a kernel whose sums depend on the alignment of its scratch
memory, hence on which thread runs it, hence on the neighbours.
"""

_MAX_RESULTS = 4096
"""Results per query and part that exist at one time: long prompts attend in several rounds."""

_BLOCKS_PER_PART = PART_TOKENS // BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class _Tile:
    """Queries [start, stop) of the pass, at positions of one tile of one row."""

    start: int
    stop: int
    position: int
    blocks: Sequence[int]

    @property
    def num_queries(self) -> int:
        return self.stop - self.start

    @property
    def part(self) -> int:
        """The part that the queries themselves are in."""
        return self.position // PART_TOKENS

    def first_part(self, sliding_window: int | None) -> int:
        """The first part that any query of this part may see: the same for all of them."""
        if sliding_window is None:
            return 0
        return max(0, self.part * PART_TOKENS - sliding_window + 1) // PART_TOKENS

    @property
    def num_last_keys(self) -> int:
        """Keys of the last part, up to the end of the tile."""
        return (self.position % PART_TOKENS // TILE_TOKENS + 1) * TILE_TOKENS


@dataclass(frozen=True, slots=True)
class Call:
    """Tiles of equally many queries, each over equally many keys.

    Shapes:
        queries: [C * Q] places in the pass. blocks: [C * K / block_tokens]. mask: [C, 1, Q M', K]
        additive fp32, M' with padding, or None. blind: [C * Q] queries that see none of the keys,
        or None if there are none.
    """

    num_tiles: int
    queries: Tensor
    blocks: Tensor
    mask: Tensor | None
    blind: Tensor | None


@dataclass(frozen=True, slots=True)
class Join:
    """Queries with results of equally many parts, [n] and [P] times [n]."""

    queries: Tensor
    results: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Round:
    """Calls whose results exist together, and how each query's are joined."""

    calls: Sequence[Call]
    joins: Sequence[Join]


class PartPlan:
    """The calls of one pass, made when a layer first asks for its kind of them."""

    def __init__(self, spans: Sequence[PagedSpan], device: torch.device) -> None:
        self._device = device
        self._tiles = [tile for span in spans for tile in _tiles(span)]
        self._rounds: dict[tuple[int | None, int], list[Round]] = {}

    def rounds(self, sliding_window: int | None, num_groups: int) -> list[Round]:
        """Rounds for layers of this window and so many query heads per key-value head."""
        key = (sliding_window, num_groups)
        if key not in self._rounds:
            self._rounds[key] = [
                self._round(tiles, sliding_window, num_groups)
                for tiles in _bounded(self._tiles, sliding_window)
            ]
        return self._rounds[key]

    def _round(self, tiles: Sequence[_Tile], sliding_window: int | None, num_groups: int) -> Round:
        """Calls for these tiles, and which of their results make up each query's."""
        last_parts: dict[tuple[int, int], list[_Tile]] = {}
        earlier: dict[tuple[int, ...], list[_Tile]] = {}
        for tile in tiles:
            last_parts.setdefault((tile.num_queries, tile.num_last_keys), []).append(tile)
            for part in range(tile.first_part(sliding_window), tile.part):
                begin = part * _BLOCKS_PER_PART
                blocks = tile.blocks[begin : begin + _BLOCKS_PER_PART]
                earlier.setdefault((part, *blocks), []).append(tile)
        shared: dict[int, list[tuple[tuple[int, ...], list[_Tile]]]] = {}
        for part, seeing in earlier.items():
            num_queries = sum(tile.num_queries for tile in seeing)
            shared.setdefault(num_queries, []).append((part, seeing))

        calls: list[Call] = []
        results: dict[int, list[int]] = {tile.start: [] for tile in tiles}
        end = 0

        def add(
            seeing: Sequence[_Tile], parts: Sequence[int], blocks: list[int], num_keys: int
        ) -> None:
            nonlocal end
            for tile in seeing:
                results[tile.start].append(end)
                end += tile.num_queries
            first_keys = np.asarray(parts, np.int64) * PART_TOKENS
            calls.append(
                self._made_call(seeing, first_keys, blocks, num_keys, sliding_window, num_groups)
            )

        for alike in shared.values():
            add(
                [tile for _, seeing in alike for tile in seeing],
                [key[0] for key, _ in alike],
                [block for key, _ in alike for block in key[1:]],
                PART_TOKENS,
            )
        for (_, num_keys), seeing in last_parts.items():
            blocks = [block for tile in seeing for block in _last_blocks(tile, num_keys)]
            add(seeing, [tile.part for tile in seeing], blocks, num_keys)
        return Round(calls, self._joins(tiles, results))

    def _made_call(
        self,
        seeing: Sequence[_Tile],
        first_keys_C: Array,
        blocks: Sequence[int],
        num_keys: int,
        sliding_window: int | None,
        num_groups: int,
    ) -> Call:
        """A call for the queries of ``seeing``, equally many for each of the C parts of keys."""
        queries, positions = _queries(seeing)
        positions_CQ = positions.reshape(len(first_keys_C), -1)
        distance_CQK = (positions_CQ - first_keys_C[:, None])[:, :, None] - np.arange(num_keys)
        hidden_CQK = distance_CQK < 0
        if sliding_window is not None:
            hidden_CQK |= distance_CQK >= sliding_window
        mask = blind = None
        if hidden_CQK.any():
            num_tiles, num_queries = positions_CQ.shape
            hidden_CXK = np.repeat(hidden_CQK, num_groups, 1)
            padding = -num_queries * num_groups % QUERY_ALIGNMENT
            mask_CXK = np.zeros((num_tiles, hidden_CXK.shape[1] + padding, num_keys), np.float32)
            mask_CXK[:, : hidden_CXK.shape[1]][hidden_CXK] = -np.inf
            mask = self._on_device(mask_CXK[:, None])
            blind_CQ = hidden_CQK.all(-1)
            blind = self._on_device(blind_CQ.reshape(-1)) if blind_CQ.any() else None
        return Call(
            len(first_keys_C),
            self._on_device(queries),
            self._on_device(np.asarray(blocks, np.int64)),
            mask,
            blind,
        )

    def _joins(self, tiles: Sequence[_Tile], results: dict[int, list[int]]) -> list[Join]:
        by_count: dict[int, list[_Tile]] = {}
        for tile in tiles:
            by_count.setdefault(len(results[tile.start]), []).append(tile)
        joins: list[Join] = []
        for num_parts, alike in by_count.items():
            places = [
                np.concatenate([results[t.start][part] + np.arange(t.num_queries) for t in alike])
                for part in range(num_parts)
            ]
            queries, _ = _queries(alike)
            joins.append(Join(self._on_device(queries), [self._on_device(p) for p in places]))
        return joins

    def _on_device(self, array: Array) -> Tensor:
        return to_device(torch.from_numpy(array), self._device)


def _tiles(span: PagedSpan) -> Iterator[_Tile]:
    start, position = span.start, span.first_position
    while start < span.stop:
        stop = min(span.stop, start + TILE_TOKENS - position % TILE_TOKENS)
        yield _Tile(start, stop, position, span.blocks)
        start, position = stop, position + stop - start


def _bounded(tiles: Sequence[_Tile], sliding_window: int | None) -> Iterator[list[_Tile]]:
    """Tiles in groups of at most ``_MAX_RESULTS`` results, or of one tile."""
    group: list[_Tile] = []
    num_results = 0
    for tile in tiles:
        wanted = tile.num_queries * (tile.part - tile.first_part(sliding_window) + 1)
        if group and num_results + wanted > _MAX_RESULTS:
            yield group
            group, num_results = [], 0
        group.append(tile)
        num_results += wanted
    yield group


def _queries(tiles: Sequence[_Tile]) -> tuple[Array, Array]:
    """Places in the pass and positions of the tiles' queries, one after the other."""
    if all(tile.num_queries == 1 for tile in tiles):
        starts = np.asarray([tile.start for tile in tiles], np.int64)
        return starts, np.asarray([tile.position for tile in tiles], np.int64)
    places = [np.arange(tile.start, tile.stop) for tile in tiles]
    positions = [np.arange(tile.num_queries) + tile.position for tile in tiles]
    return np.concatenate(places), np.concatenate(positions)


def _last_blocks(tile: _Tile, num_keys: int) -> list[int]:
    """Blocks of the last part up to the end of the tile, the missing ones filled up."""
    begin, num_blocks = tile.part * _BLOCKS_PER_PART, num_keys // BLOCK_TOKENS
    blocks = list(tile.blocks[begin : begin + num_blocks])
    return blocks + [ZERO_BLOCK] * (num_blocks - len(blocks))
