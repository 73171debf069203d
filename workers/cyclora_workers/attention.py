"""Attention: the function that transformers calls, and its plan for packed training sequences.

Legend: T packed tokens, N query heads, G key-value heads, H head size, L tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from cyclora_workers.attention_sinks import attend_heads
from cyclora_workers.context import PassContext
from cyclora_workers.cpu_attention import Run, attend_runs
from cyclora_workers.rows import aligned_width, with_aligned_rows

ATTENTION_NAME = "cyclora"
"""Registered with transformers. No mask function is registered under this name, so transformers
builds no [T, T] mask."""

_HARMLESS_ARGUMENTS = frozenset(
    {"position_ids", "use_cache", "cache_position", "dropout", "output_router_logits"}
)
"""What decoder layers pass along that attention has no need of. Anything else (a soft cap on
scores, a position bias) would change the result, so it is refused."""


_MIN_SHARED_TOKENS = 32
"""torch's CPU kernel works on this many query rows at a time, or a multiple."""


class UnsupportedAttention(ValueError):
    """The architecture asks for something that our attention does not compute."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    pass_context: PassContext | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Hand the heads of one layer to the attention plan of the running pass.

    Shapes:
        query [1, N, T, H], key and value [1, G, T, H]; returns [1, T, N, H].

    Raises:
        UnsupportedAttention: a mask or an argument was given that the plan would ignore, or the
            plan did not get here.
    """
    if pass_context is None:
        raise UnsupportedAttention(
            f"{type(module).__name__} does not hand on the arguments of its model to attention"
        )
    refused = [n for n, v in others.items() if v is not None and n not in _HARMLESS_ARGUMENTS]
    if attention_mask is not None:
        refused.append("attention_mask")
    if refused:
        raise UnsupportedAttention(
            f"{type(module).__name__} passes {', '.join(refused)} to attention; supported are "
            "plain causal attention, grouped heads, sliding windows and sinks"
        )
    layer_index: Any = module.layer_idx
    attended_TNH = pass_context.attention.attend(
        layer_index, query[0], key[0], value[0], scaling, sliding_window, s_aux
    )
    return attended_TNH.unsqueeze(0), None


AttentionInterface.register(ATTENTION_NAME, attention_forward)


class PackedAttention:
    """Causal attention inside each packed sequence, never across two of them.

    Neighbours of equal length share one batched call where that computes each sequence exactly as
    a call of its own would (``test_attention.py`` compares the bits).
    """

    def __init__(self, cu_seqlens: Sequence[int]) -> None:
        self._num_tokens = cu_seqlens[-1]
        self._sequences = [Run(start, 1, stop - start) for start, stop in pairwise(cu_seqlens)]
        self._runs: dict[tuple[Any, ...], list[Run]] = {}

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
        """Implements ``AttentionPlan.attend``; surplus rows return zeros."""
        heads = (query_NTH, key_GTH, value_GTH)
        runs = self._runs_of(key_GTH)
        if query_NTH.device.type == "cpu":
            if sinks_N is None:
                return attend_runs(runs, *heads, scaling, sliding_window)
            heads = tuple(with_aligned_rows(each) for each in heads)
        surplus = query_NTH.shape[1] - self._num_tokens
        sizes = [run.num_sequences * run.num_tokens_each for run in runs] + [surplus]
        # One split has one backward, a concatenation; slicing would have one full-size one each.
        parts = zip(runs, *(tensor.split(sizes, 1) for tensor in heads), strict=False)
        outputs = [
            _attend_run(run, query, key, value, scaling, sliding_window, sinks_N)
            for run, query, key, value in parts
        ]
        outputs.append(query_NTH.new_zeros(surplus, query_NTH.shape[0], query_NTH.shape[2]))
        return torch.cat(outputs)

    def _runs_of(self, key_GTH: Tensor) -> list[Run]:
        """The sequences by calls; the same for all layers whose heads are alike."""
        alike = (key_GTH.device.type, key_GTH.dtype, key_GTH.shape[0], key_GTH.shape[2])
        if alike not in self._runs:
            runs: list[Run] = []
            for sequence in self._sequences:
                last = runs[-1] if runs else None
                length = sequence.num_tokens_each
                if last and last.num_tokens_each == length and _may_share_a_call(length, key_GTH):
                    runs[-1] = replace(last, num_sequences=last.num_sequences + 1)
                else:
                    runs.append(sequence)
            self._runs[alike] = runs
        return self._runs[alike]


def _may_share_a_call(num_tokens_each: int, key_GTH: Tensor) -> bool:
    """Whether a batched call gives each of its sequences the bits of a call of its own.

    On CPU the bits of a sequence depend in three ways on how many share its call:

    - The backward pass shares out its work by sequence and key-value head. When that makes one
      share only, the products inside use several threads, and sum in another order.
    - Which thread computes a head changes, and a thread's scratch memory is aligned for any thread
      only from ``_MIN_SHARED_TOKENS`` on; shorter ones take as much as they need.
    - In what the call returns, a sequence begins at an aligned address only if every token does.
    """
    if key_GTH.device.type != "cpu":
        return True
    num_heads, _, head_size = key_GTH.shape
    num_columns = num_heads * head_size
    return (
        num_heads > 1
        and num_tokens_each >= _MIN_SHARED_TOKENS
        and aligned_width(num_columns, key_GTH.dtype) == num_columns
    )


def _attend_run(
    run: Run,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    sinks_N: Tensor | None,
) -> Tensor:
    """Shapes: query [N, S * L, H], key and value [G, S * L, H]; returns [S * L, N, H]."""
    length = run.num_tokens_each

    def batched(heads: Tensor) -> Tensor:
        return heads.unflatten(1, (run.num_sequences, length)).transpose(0, 1)

    mask_LL = None
    if window is not None and length > window:
        ones_LL = torch.ones(length, length, dtype=torch.bool, device=query.device)
        mask_LL = ones_LL.tril().triu(1 - window)
    attended_SNLH = attend_heads(
        batched(query), batched(key), batched(value), scaling, mask_LL, sinks_N
    )
    attended_TE = attended_SNLH.transpose(1, 2).flatten(0, 1).flatten(1)
    # For the backward pass, which reads the gradient where it lies in that of all sequences.
    return with_aligned_rows(attended_TE).unflatten(1, query.shape[::2])
