"""Attention of a block whose data share prefixes: each prefix is attended to where it lies.

A row attends to its own node causally and to every node above it as a whole, part by part. No key
is copied, and the gradients of a prefix's keys and values sum over all data that share it.

Every call serves one block only, so no neighbour can change its bits.

Legend: T packed tokens, R rows of a block, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclora_workers.attention import PackedAttention
from cyclora_workers.attention_parts import attend_part, join_part_, part_gradients
from cyclora_workers.attention_sinks import add_sinks, attend_heads
from cyclora_workers.context import AttentionPlan
from cyclora_workers.packed_plan import packed_attention
from cyclora_workers.prefix_tree import Node, PrefixTree
from cyclora_workers.rows import empty_with_aligned_rows, with_aligned_rows


def training_attention(
    trees: Sequence[PrefixTree], *, device: torch.device, dtype: torch.dtype, head_size: int
) -> AttentionPlan:
    """The plan of a microbatch of these blocks, in the order of their rows."""
    if not any(tree.is_shared for tree in trees):
        return packed_attention(_bounds(trees), device=device, dtype=dtype, head_size=head_size)
    plans: list[tuple[int, AttentionPlan]] = []
    for is_shared, neighbours in groupby(trees, key=lambda tree: tree.is_shared):
        if is_shared:
            plans += [(tree.num_rows, PrefixAttention(tree)) for tree in neighbours]
        else:
            bounds = _bounds(neighbours)
            plans.append((bounds[-1], PackedAttention(bounds)))
    # Sequences without prefixes take the same calls whether others share prefixes or not.
    return plans[0][1] if len(plans) == 1 else _SideBySide(plans)


def _bounds(trees: Iterable[PrefixTree]) -> list[int]:
    """Where the sequences of trees without shared prefixes begin, and the last one's end."""
    return list(accumulate((size for tree in trees for size in tree.sizes), initial=0))


class _SideBySide:
    """Implements ``AttentionPlan``: consecutive rows, each with a plan of their own."""

    def __init__(self, plans: Sequence[tuple[int, AttentionPlan]]) -> None:
        self._sizes = [size for size, _ in plans]
        self._plans = [plan for _, plan in plans]

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
        num_heads, num_rows, head_size = query_NTH.shape
        surplus = num_rows - sum(self._sizes)
        sizes = [*self._sizes, surplus]
        heads = zip(
            *(each.split(sizes, 1) for each in (query_NTH, key_GTH, value_GTH)), strict=True
        )
        outputs = [
            plan.attend(layer_index, query, key, value, scaling, sliding_window, sinks_N)
            for plan, (query, key, value) in zip(self._plans, heads, strict=False)
        ]
        return torch.cat([*outputs, query_NTH.new_zeros(surplus, num_heads, head_size)])


class PrefixAttention:
    """Implements ``AttentionPlan`` for the rows of one tree; surplus rows return zeros."""

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._windows: dict[int, list[tuple[Tensor, Tensor]]] = {}

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
        """Causal attention along the path of each datum; returns [T, N, H]."""
        num_rows = self._tree.num_rows
        surplus = query_NTH.shape[1] - num_rows
        query, key, value = (
            with_aligned_rows(each[:, :num_rows]) for each in (query_NTH, key_GTH, value_GTH)
        )
        if sliding_window is not None and sliding_window < max(self._tree.sizes):
            out_RNH = self._attend_windows(query, key, value, scaling, sliding_window, sinks_N)
        else:
            nodes = self._tree.nodes
            out_RNH = _TreeFunction.apply(  # type: ignore[no-untyped-call]
                query, key, value, nodes, scaling, sinks_N
            )
        return functional.pad(out_RNH, (0, 0, 0, 0, 0, surplus))

    def _attend_windows(
        self,
        query_NRH: Tensor,
        key_GRH: Tensor,
        value_GRH: Tensor,
        scaling: float,
        window: int,
        sinks_N: Tensor | None,
    ) -> Tensor:
        """Node by node with a copy of the keys in sight, which a window keeps few."""
        if window not in self._windows:
            self._windows[window] = list(_windows(self._tree, window, query_NRH.device))
        sizes = [node.stop - node.start for node in self._tree.nodes]
        outputs: list[Tensor] = []
        for query, (rows_S, mask_LS) in zip(
            query_NRH.split(sizes, 1), self._windows[window], strict=True
        ):
            attended_1NLH = attend_heads(
                query.unsqueeze(0),
                with_aligned_rows(key_GRH.index_select(1, rows_S)).unsqueeze(0),
                with_aligned_rows(value_GRH.index_select(1, rows_S)).unsqueeze(0),
                scaling,
                mask_LS,
                sinks_N,
            )
            outputs.append(attended_1NLH[0].transpose(0, 1))
        return torch.cat(outputs)


def _windows(
    tree: PrefixTree, window: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each node the rows of the keys that some row of it sees, and which row sees which."""
    for node in tree.nodes:
        first = max(0, node.position - window + 1)
        rows_S = torch.from_numpy(tree.path(node)[first:]).to(device)
        num_rows = node.stop - node.start
        positions_S = torch.arange(len(rows_S), device=device)
        distance_LS = positions_S[-num_rows:, None] - positions_S
        yield rows_S, (distance_LS >= 0) & (distance_LS < window)


class _TreeFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NRH: Tensor,
        key_GRH: Tensor,
        value_GRH: Tensor,
        nodes: Sequence[Node],
        scaling: float,
        sinks_N: Tensor | None,
    ) -> Tensor:
        out_RNH = _aligned_zeros(query_NRH)
        lse_NR = out_RNH.new_empty(query_NRH.shape[:2])
        for node in nodes:
            rows = slice(node.start, node.stop)
            heads = (query_NRH[:, rows], key_GRH[:, rows], value_GRH[:, rows])
            part_NLH, lse_NR[:, rows] = attend_part(*heads, scaling, is_causal=True)
            out_RNH[rows] = part_NLH.transpose(0, 1)
        for node in nodes:
            rows, below = slice(node.start, node.stop), slice(node.stop, node.end)
            if node.end > node.stop:
                heads = (query_NRH[:, below], key_GRH[:, rows], value_GRH[:, rows])
                part = attend_part(*heads, scaling, is_causal=False)
                join_part_(out_RNH[below], lse_NR[:, below], *part)
        if sinks_N is not None:
            out_RNH, lse_RN = add_sinks(out_RNH, lse_NR.t(), sinks_N)
            lse_NR = lse_RN.t().contiguous()
        out_RNH = out_RNH.to(query_NRH.dtype)
        ctx.save_for_backward(query_NRH, key_GRH, value_GRH, out_RNH, lse_NR)
        ctx.nodes = nodes
        ctx.scaling = scaling
        return out_RNH

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out_RNH, lse_NR = ctx.saved_tensors
        gradient_NRH = with_aligned_rows(grad_outputs[0].flatten(1)).unflatten(1, query.shape[::2])
        gradient_NRH = gradient_NRH.transpose(0, 1)
        out_NRH = with_aligned_rows(out_RNH.flatten(1)).unflatten(1, query.shape[::2])
        out_NRH = out_NRH.transpose(0, 1)
        found = [_aligned_zeros(each).transpose(0, 1) for each in (query, key, value)]
        for node in ctx.nodes:
            rows, below = slice(node.start, node.stop), slice(node.stop, node.end)
            for queries, is_causal in ((rows, True), (below, False)):
                if queries.start == queries.stop:
                    continue
                parts = part_gradients(
                    gradient_NRH[:, queries],
                    query[:, queries],
                    key[:, rows],
                    value[:, rows],
                    out_NRH[:, queries],
                    lse_NR[:, queries],
                    ctx.scaling,
                    is_causal=is_causal,
                )
                for total, places, part in zip(found, (queries, rows, rows), parts, strict=True):
                    total[:, places] += part
        gradients = [
            total.to(each.dtype) for total, each in zip(found, (query, key, value), strict=True)
        ]
        return *gradients, None, None, None


def _aligned_zeros(heads_NRH: Tensor) -> Tensor:
    """Shapes: returns [R, N, H] fp32, where every row begins at an aligned address."""
    num_heads, _, head_size = heads_NRH.shape
    rows_RC = empty_with_aligned_rows(heads_NRH, num_heads * head_size, torch.float32)
    return rows_RC.zero_().unflatten(1, (num_heads, head_size))
