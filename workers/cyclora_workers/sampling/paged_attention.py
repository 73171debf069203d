"""Attention of one pass over the paged KV cache: chunks of prompts and rows that decode alike.

A query attends to parts of its keys (``part_plan.py``), whose results are joined by their
log-sum-exp::

    out = sum_i w_i out_i,   w = softmax(lse)

Legend: T packed tokens, N query heads, G key-value heads, M query heads per key-value head, C tiles
of one call, Q queries of a tile, K keys of a tile, H head size, R results, P parts of a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cyclora_workers.sampling.kv_pool import BLOCK_TOKENS, ZERO_BLOCK, KvPool
from cyclora_workers.sampling.part_plan import QUERY_ALIGNMENT, Call, PartPlan
from cyclora_workers.sampling.step_rows import PagedSpan, slots_of
from cyclora_workers.transfer import to_device


class PagedAttention:
    """Implements ``AttentionPlan``.

    Keys and values are written behind what the rows count as present, and the counts are left
    alone: a pass that fails can be run again.
    """

    def __init__(self, pool: KvPool, spans: Sequence[PagedSpan]) -> None:
        self._pool = pool
        self._num_tokens = max(span.stop for span in spans)
        slots_T = slots_of(spans, self._num_tokens, BLOCK_TOKENS, ZERO_BLOCK)
        self._slots_T = to_device(torch.from_numpy(slots_T), pool.shape.device)
        self._plan = PartPlan(spans, pool.shape.device)

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
        for each in self._plan.rounds(sliding_window, num_groups):
            found = [self._call(layer_index, call, query_TGMH, scaling) for call in each.calls]
            out_RGMH = _joined_list([out for out, _ in found])
            lse_RGM = _joined_list([lse for _, lse in found])
            for join in each.joins:
                attended = _join(out_RGMH, lse_RGM, join.results, sinks_GM)
                out_TNH.index_copy_(0, join.queries, attended.flatten(1, 2).to(out_TNH.dtype))
        return out_TNH

    def _call(
        self, layer_index: int, call: Call, query_TGMH: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Results of each query of each tile, [C * Q, G, M, H], and their log-sum-exp."""
        num_groups, num_tiles = query_TGMH.shape[2], call.num_tiles
        keys_CGKH, values_CGKH = self._pool.gather(layer_index, call.blocks, num_tiles)
        queries = query_TGMH.index_select(0, call.queries).unflatten(0, (num_tiles, -1))
        query_CGXH = queries.transpose(1, 2).flatten(2, 3)
        num_queries = query_CGXH.shape[2]
        padding = -num_queries % QUERY_ALIGNMENT
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
