"""Attention of one pass over the paged KV cache: chunks of prompts and rows that decode alike.

Keys fall into parts of ``PART_TOKENS`` by their position. A query attends to each part that it
sees by itself, and the results are joined by their log-sum-exp::

    out = sum_i w_i out_i,   w = softmax(lse)

A part that several queries see, as siblings see their prompt, is read once for all of them. The
last part is cut off at the end of the query's tile of ``TILE_TOKENS``, and masked.

What a query's sums run over, and in which order, so depends on its position alone: a token has the
same bits alone and beside others, prefilled in any chunks and decoded, computed and found in
blocks that somebody else computed (docs/decisions/0034-paged-samples.md).

Legend: T packed tokens, N query heads, G key-value heads, M query heads per key-value head, C tiles
of one call, Q queries of a tile, K keys of a tile, H head size, R results, P parts of a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cyclora_core.payload import Array
from cyclora_workers.sampling.kv_pool import BLOCK_TOKENS, ZERO_BLOCK, KvPool

PART_TOKENS = 256
"""Longer parts join fewer results, and let siblings share less of their prompt."""

TILE_TOKENS = 64
"""Queries at positions [64 i, 64 (i + 1)) see keys up to the end of this tile of their part, the
later ones masked: how long a sum is changes its bits."""

_QUERY_ALIGNMENT = 4
"""Query heads of a tile are padded to a multiple of this.

On CPU a product of fewer rows takes a kernel whose sums depend on the alignment of its scratch
memory, hence on which thread runs it, hence on the neighbours.
"""

_MAX_RESULTS = 4096
"""Results per query and part that exist at one time: long prompts attend in several rounds."""

_BLOCKS_PER_PART = PART_TOKENS // BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class PagedSpan:
    """Packed tokens [start, stop) at consecutive positions of one row, from ``first_position`` on.

    ``blocks`` is the row's block table, with room for these tokens.
    """

    start: int
    stop: int
    first_position: int
    blocks: Sequence[int]


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
class _Call:
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
class _Join:
    """Queries with results of equally many parts, [n] and [P] times [n]."""

    queries: Tensor
    results: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class _Round:
    calls: Sequence[_Call]
    joins: Sequence[_Join]


class PagedAttention:
    """Implements ``AttentionPlan``.

    Keys and values are written behind what the rows count as present, and the counts are left
    alone: a pass that fails can be run again.
    """

    def __init__(self, pool: KvPool, spans: Sequence[PagedSpan]) -> None:
        self._pool = pool
        self._device = pool.shape.device
        self._num_tokens = max(span.stop for span in spans)
        self._tiles = [tile for span in spans for tile in _tiles(span)]
        self._slots_T = self._on_device(_slots(spans, self._num_tokens))
        self._rounds: dict[tuple[int | None, int], list[_Round]] = {}

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
        """Causal attention of each row to its own cache; returns [T, N, H]."""
        num_heads, num_rows, head_size = query_NTH.shape
        planned = slice(0, self._num_tokens)
        self._pool.write(
            layer_index,
            self._slots_T,
            key_GTH[:, planned].transpose(0, 1),
            value_GTH[:, planned].transpose(0, 1),
        )
        num_groups = num_heads // key_GTH.shape[0]
        query_TGMH = query_NTH.transpose(0, 1).unflatten(1, (-1, num_groups))
        out_TNH = query_NTH.new_zeros(num_rows, num_heads, head_size)
        sinks_GM = None if sinks_N is None else sinks_N.float().unflatten(0, (-1, num_groups))
        for each in self._rounds_of(sliding_window, num_groups):
            found = [self._call(layer_index, call, query_TGMH, scaling) for call in each.calls]
            out_RGMH = _joined_list([out for out, _ in found])
            lse_RGM = _joined_list([lse for _, lse in found])
            for join in each.joins:
                attended = _join(out_RGMH, lse_RGM, join.results, sinks_GM)
                out_TNH.index_copy_(0, join.queries, attended.flatten(1, 2).to(out_TNH.dtype))
        return out_TNH

    def _call(
        self, layer_index: int, call: _Call, query_TGMH: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Results of each query of each tile, [C * Q, G, M, H], and their log-sum-exp."""
        num_groups, num_tiles = query_TGMH.shape[2], call.num_tiles
        keys_CGKH, values_CGKH = self._pool.gather(layer_index, call.blocks, num_tiles)
        queries = query_TGMH.index_select(0, call.queries).unflatten(0, (num_tiles, -1))
        query_CGXH = queries.transpose(1, 2).flatten(2, 3)
        num_queries = query_CGXH.shape[2]
        padding = -num_queries % _QUERY_ALIGNMENT
        query_CGXH = functional.pad(query_CGXH, (0, 0, 0, padding)).contiguous()
        out_CGXH, lse_CGX = _attend(query_CGXH, keys_CGKH, values_CGKH, call.mask, scaling)

        out_CQGMH = out_CGXH[:, :, :num_queries].unflatten(2, (-1, num_groups)).transpose(1, 2)
        lse_CQGM = lse_CGX[:, :, :num_queries].unflatten(2, (-1, num_groups)).transpose(1, 2)
        out, lse = out_CQGMH.flatten(0, 1), lse_CQGM.flatten(0, 1)
        if call.blind is not None:
            blind = call.blind[:, None, None]
            lse = lse.masked_fill(blind, float("-inf"))
            out = out.masked_fill(blind.unsqueeze(-1), 0.0)
        return out, lse

    def _rounds_of(self, sliding_window: int | None, num_groups: int) -> list[_Round]:
        key = (sliding_window, num_groups)
        if key not in self._rounds:
            self._rounds[key] = [
                self._round(tiles, sliding_window, num_groups)
                for tiles in _bounded(self._tiles, sliding_window)
            ]
        return self._rounds[key]

    def _round(self, tiles: Sequence[_Tile], sliding_window: int | None, num_groups: int) -> _Round:
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

        calls: list[_Call] = []
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
        return _Round(calls, self._joins(tiles, results))

    def _made_call(
        self,
        seeing: Sequence[_Tile],
        first_keys_C: Array,
        blocks: Sequence[int],
        num_keys: int,
        sliding_window: int | None,
        num_groups: int,
    ) -> _Call:
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
            padding = -num_queries * num_groups % _QUERY_ALIGNMENT
            mask_CXK = np.zeros((num_tiles, hidden_CXK.shape[1] + padding, num_keys), np.float32)
            mask_CXK[:, : hidden_CXK.shape[1]][hidden_CXK] = -np.inf
            mask = self._on_device(mask_CXK[:, None])
            blind_CQ = hidden_CQK.all(-1)
            blind = self._on_device(blind_CQ.reshape(-1)) if blind_CQ.any() else None
        return _Call(
            len(first_keys_C),
            self._on_device(queries),
            self._on_device(np.asarray(blocks, np.int64)),
            mask,
            blind,
        )

    def _joins(self, tiles: Sequence[_Tile], results: dict[int, list[int]]) -> list[_Join]:
        by_count: dict[int, list[_Tile]] = {}
        for tile in tiles:
            by_count.setdefault(len(results[tile.start]), []).append(tile)
        joins: list[_Join] = []
        for num_parts, alike in by_count.items():
            places = [
                np.concatenate([results[t.start][part] + np.arange(t.num_queries) for t in alike])
                for part in range(num_parts)
            ]
            queries, _ = _queries(alike)
            joins.append(_Join(self._on_device(queries), [self._on_device(p) for p in places]))
        return joins

    def _on_device(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device)


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


def _slots(spans: Sequence[PagedSpan], num_tokens: int) -> Array:
    """Where each packed token's keys and values go: [T] int64."""
    slots_T = np.zeros(num_tokens, np.int64)
    for span in spans:
        if span.stop - span.start == 1:  # most spans; whole arrays would cost more than they do
            block, offset = divmod(span.first_position, BLOCK_TOKENS)
            slots_T[span.start] = span.blocks[block] * BLOCK_TOKENS + offset
            continue
        positions = np.arange(span.first_position, span.first_position + span.stop - span.start)
        blocks = np.asarray(span.blocks, np.int64)[positions // BLOCK_TOKENS]
        slots_T[span.start : span.stop] = blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS
    return slots_T


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


def _attend(
    query_CGXH: Tensor,
    keys_CGKH: Tensor,
    values_CGKH: Tensor,
    mask_C1XK: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Attention to all keys that the mask leaves, in fp32, and the log-sum-exp of the scores.

    Query heads of one key-value head stand beside each other as queries: no key is repeated.

    Shapes:
        X = Q M queries and query heads. Returns [C, G, X, H] and [C, G, X].
    """
    operands = (query_CGXH.float(), keys_CGKH.float(), values_CGKH.float())
    if query_CGXH.device.type != "cpu":
        query, keys, values = operands
        scores_CGXK = torch.matmul(query, keys.transpose(2, 3)) * scaling
        if mask_C1XK is not None:
            scores_CGXK += mask_C1XK
        weights_CGXK = torch.softmax(scores_CGXK, -1)
        return torch.matmul(weights_CGXK, values), scores_CGXK.logsumexp(-1)
    is_single = query_CGXH.shape[0] * query_CGXH.shape[1] == 1
    if is_single:
        # A single product would be shared out over threads, and sum in another order.
        operands = tuple(operand.expand(2, -1, -1, -1) for operand in operands)
    out_CGXH, lse_CGX = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        *operands, attn_mask=mask_C1XK, scale=scaling
    )
    return (out_CGXH[:1], lse_CGX[:1]) if is_single else (out_CGXH, lse_CGX)


def _joined_list(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _join(
    out_RGMH: Tensor, lse_RGM: Tensor, results: Sequence[Tensor], sinks_GM: Tensor | None
) -> Tensor:
    """One result per query from those of its parts, the first part first.

    Sinks are one more part, whose result is zero (``attention_sinks.py``).

    The weights come from a softmax over the parts, a kernel that treats each query alike; an
    element-wise exponential treats the last elements of a tensor differently.
    """
    outs = [out_RGMH.index_select(0, places) for places in results]
    lses = [lse_RGM.index_select(0, places) for places in results]
    if sinks_GM is not None:
        lses.append(sinks_GM.expand_as(lses[0]))
    elif len(outs) == 1:
        return outs[0]
    weights_nGMP = torch.softmax(torch.stack(lses, -1), -1)
    joined = outs[0] * weights_nGMP[..., :1]
    for part, out in enumerate(outs[1:], 1):
        joined = joined + out * weights_nGMP[..., part : part + 1]
    return joined
