"""Attention of one pass that mixes chunks of prompts with rows that decode.

A row that shares its prompt with siblings attends in two parts, to the prompt and to its own
tokens, joined by their log-sum-exp::

    out = sum_i w_i out_i,   w = softmax(lse)

Every call serves one request only, so no neighbour can change its bits.

Legend: T packed tokens, S decoding rows, N query heads, G key-value heads, M query heads per
key-value head, B tokens of a block, L visible keys, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cyclora_workers.sampling.chunking import PREFILL_BLOCK_TOKENS
from cyclora_workers.sampling.kv_cache import RequestCache

_QUERY_ALIGNMENT = 4
"""Query heads that share a key-value head are padded to a multiple of this.

On CPU a product of fewer rows takes a kernel whose sums depend on the alignment of its scratch
memory, hence on which thread runs it, hence on how many siblings a row has.
"""


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Packed tokens [start, stop) are the next ones of a prompt."""

    start: int
    stop: int
    cache: RequestCache


@dataclass(frozen=True, slots=True)
class DecodeSpan:
    """Packed tokens [start, stop) are the newest tokens of a request's rows, one each."""

    start: int
    stop: int
    cache: RequestCache


class CachedAttention:
    """Implements ``AttentionPlan``.

    Keys and values are written behind what the caches count as present, and the counts are left
    alone: a pass that fails can be run again.
    """

    def __init__(
        self,
        prefills: Sequence[PrefillSpan],
        decodes: Sequence[DecodeSpan],
        device: torch.device,
    ) -> None:
        self._prefills = prefills
        self._decodes = decodes
        rows = [row for span in decodes for row in range(span.start, span.stop)]
        self._decode_rows_S = torch.tensor(rows, dtype=torch.int64, device=device)
        self._masks: dict[tuple[int, int, int], Tensor] = {}

    def attend(
        self,
        layer_index: int,
        query_NTH: Tensor,
        key_GTH: Tensor,
        value_GTH: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Causal attention to each request's cache and to the pass itself; returns [T, N, H]."""
        num_heads, num_tokens, head_size = query_NTH.shape
        out_TNH = query_NTH.new_zeros(num_tokens, num_heads, head_size)
        query_GMTH = query_NTH.unflatten(0, (key_GTH.shape[0], -1))
        for span in self._prefills:
            keys_GPH, values_GPH = span.cache.prompt(layer_index).unbind(0)
            first = span.cache.num_prefilled
            last = first + span.stop - span.start
            keys_GPH[:, first:last] = key_GTH[:, span.start : span.stop]
            values_GPH[:, first:last] = value_GTH[:, span.start : span.stop]
            for begin in range(first, last, PREFILL_BLOCK_TOKENS):
                end = min(begin + PREFILL_BLOCK_TOKENS, last)
                visible = slice(_first_visible(begin, sliding_window), end)
                rows = slice(span.start + begin - first, span.start + end - first)
                block_GMBH = self._attend_block(
                    query_GMTH[:, :, rows],
                    keys_GPH[:, visible],
                    values_GPH[:, visible],
                    scaling,
                    sliding_window,
                )
                out_TNH[rows] = block_GMBH.flatten(0, 1).transpose(0, 1)
        if self._decodes:
            rows_S = self._decode_rows_S
            attended_SGMH = self._decode(
                layer_index,
                query_GMTH.index_select(2, rows_S),
                key_GTH.index_select(1, rows_S),
                value_GTH.index_select(1, rows_S),
                scaling,
                sliding_window,
            )
            out_TNH.index_copy_(0, rows_S, attended_SGMH.flatten(1, 2))
        return out_TNH

    def _attend_block(
        self,
        query_GMBH: Tensor,
        keys_GLH: Tensor,
        values_GLH: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Queries of one block; the last of them is at the last key. Returns [G, M, B, H].

        Key-value heads stand in the batch dimension, so serving M query heads costs no copy.
        """
        num_groups = query_GMBH.shape[1]
        return functional.scaled_dot_product_attention(
            query_GMBH.contiguous(),
            keys_GLH.unsqueeze(1).expand(-1, num_groups, -1, -1),
            values_GLH.unsqueeze(1).expand(-1, num_groups, -1, -1),
            attn_mask=self._mask(query_GMBH, keys_GLH.shape[1], sliding_window),
            scale=scaling,
        )

    def _mask(self, query_GMBH: Tensor, num_keys: int, sliding_window: int | None) -> Tensor:
        """Additive mask [B, L], kept for the other layers of the pass."""
        num_queries = query_GMBH.shape[2]
        window = num_keys if sliding_window is None else sliding_window
        key = (num_queries, num_keys, window)
        if key not in self._masks:
            positions_L = torch.arange(num_keys, device=query_GMBH.device)
            distance_BL = positions_L[num_keys - num_queries :, None] - positions_L
            hidden_BL = (distance_BL < 0) | (distance_BL >= window)
            zeros_BL = torch.zeros(
                num_queries, num_keys, dtype=query_GMBH.dtype, device=query_GMBH.device
            )
            self._masks[key] = zeros_BL.masked_fill_(hidden_BL, float("-inf"))
        return self._masks[key]

    def _decode(
        self,
        layer_index: int,
        query_GMSH: Tensor,
        key_GSH: Tensor,
        value_GSH: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Newest tokens of all decoding rows; returns [S, G, M, H]."""
        num_groups = query_GMSH.shape[1]
        padding = -num_groups % _QUERY_ALIGNMENT
        query_SGMH = functional.pad(query_GMSH, (0, 0, 0, 0, 0, padding)).permute(2, 0, 1, 3)
        query_SGMH = query_SGMH.contiguous()
        newest_2SGH = torch.stack((key_GSH, value_GSH)).transpose(1, 2)
        attended: list[Tensor] = []
        begin = 0
        for span in self._decodes:
            cache = span.cache
            num_rows = span.stop - span.start
            mine = slice(begin, begin + num_rows)
            begin += num_rows
            own_2SGCH = cache.own(layer_index)
            num_own = cache.num_own_tokens
            own_2SGCH[:, :num_rows, :, num_own] = newest_2SGH[:, mine]

            query = query_SGMH[mine]
            num_shared = cache.num_shared_tokens
            first = _first_visible(num_shared + num_own, sliding_window)
            visible_2SGLH = own_2SGCH[:, :num_rows, :, max(0, first - num_shared) : num_own + 1]
            out_SGMH, lse_SGM = _attend_part(query, visible_2SGLH, scaling)
            if first < num_shared:
                shared_2SGLH = cache.shared(layer_index)[:, :, :, first:]
                shared_2SGLH = shared_2SGLH.expand(-1, num_rows, -1, -1, -1)
                shared = _attend_part(query, shared_2SGLH, scaling)
                out_SGMH = _join(out_SGMH, lse_SGM, *shared).to(query.dtype)
            attended.append(out_SGMH)
        return torch.cat(attended)[:, :, :num_groups]


def _first_visible(position: int, sliding_window: int | None) -> int:
    """The first key that a query at ``position`` sees; a window counts the query itself."""
    return 0 if sliding_window is None else max(0, position - sliding_window + 1)


def _attend_part(
    query_SGMH: Tensor, keys_and_values_2SGLH: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention to all given keys, and the log-sum-exp of its scores.

    Query heads of one key-value head take the place of query tokens: no key is repeated.

    Shapes:
        Returns [S, G, M, H], and [S, G, M] fp32.
    """
    keys_SGLH, values_SGLH = keys_and_values_2SGLH.unbind(0)
    if query_SGMH.device.type == "cpu":
        out_SGMH, lse_SGM = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
            query_SGMH, keys_SGLH, values_SGLH, scale=scaling
        )
        return out_SGMH, lse_SGM
    scores_SGML = torch.matmul(query_SGMH, keys_SGLH.transpose(2, 3)).float() * scaling
    weights_SGML = torch.softmax(scores_SGML, -1).to(values_SGLH.dtype)
    return torch.matmul(weights_SGML, values_SGLH), scores_SGML.logsumexp(-1)


def _join(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
    """Join two parts of one attention.

    The weights come from a softmax over pairs, a kernel that treats each pair alike; an
    element-wise exponential treats the last elements of a tensor differently.
    """
    weights_SGM2 = torch.softmax(torch.stack((lse_a, lse_b), -1), -1)
    return out_a * weights_SGM2[..., :1] + out_b * weights_SGM2[..., 1:]
