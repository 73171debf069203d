"""Causal attention of packed sequences on a CPU, as one autograd function for all of them.

torch's CPU kernel is called per run of sequences; reading from and writing to whole tensors here
saves the splits, concatenations and graph nodes that autograd would make per call.

Legend: T packed tokens, N query heads, G key-value heads, H head size, S sequences of a run,
L tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cyclora_workers.attention_products import product_gradients, takes_products
from cyclora_workers.rows import aligned_width, empty_with_aligned_rows

_MAX_CAST_TOKENS = 512
"""Up to this many tokens torch's kernel is faster on operands cast to fp32 (docs/log.md):
in bf16 it casts every block by itself, again and again."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True, slots=True)
class Run:
    """Packed tokens [start, start + S * L): sequences of one length that share a call."""

    start: int
    num_sequences: int
    num_tokens_each: int

    @property
    def starts(self) -> range:
        """Where its sequences begin."""
        size = self.num_sequences * self.num_tokens_each
        return range(self.start, self.start + size, self.num_tokens_each)


def attend_runs(
    runs: Sequence[Run],
    query_NTH: Tensor,
    key_GTH: Tensor,
    value_GTH: Tensor,
    scaling: float,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention inside each sequence; rows of no run return zeros.

    Shapes:
        Returns [T, N, H].
    """
    attended_TNH: Tensor = _AttendRuns.apply(  # type: ignore[no-untyped-call]
        query_NTH, key_GTH, value_GTH, runs, scaling, sliding_window
    )
    return attended_TNH


class _AttendRuns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NTH: Tensor,
        key_GTH: Tensor,
        value_GTH: Tensor,
        runs: Sequence[Run],
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        num_heads, num_rows, head_size = query_NTH.shape
        heads = [_Heads(tensor) for tensor in (query_NTH, key_GTH, value_GTH)]
        out_TNH = query_NTH.new_zeros(num_rows, num_heads, head_size)
        out = _Heads(out_TNH.transpose(0, 1))
        normalizers: list[Tensor] = []
        for run in runs:
            attended_SNLH, normalizer_SNL = _forward(
                *(each.of(run) for each in heads),
                **_arguments(run, heads[0], scaling, sliding_window),
            )
            out.write(run, attended_SNLH)
            normalizers.append(normalizer_SNL)
        ctx.save_for_backward(query_NTH, key_GTH, value_GTH, out_TNH, *normalizers)
        ctx.runs, ctx.scaling, ctx.sliding_window = runs, scaling, sliding_window
        return out_TNH

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_NTH, key_GTH, value_GTH, out_TNH, *normalizers = ctx.saved_tensors
        heads = [_Heads(tensor) for tensor in (query_NTH, key_GTH, value_GTH)]
        out = _Heads(out_TNH.transpose(0, 1))
        gradient = _Heads(grad_outputs[0].transpose(0, 1))
        found = [_Heads(_zeros_tokens_first(tensor)) for tensor in (query_NTH, key_GTH, value_GTH)]
        for run, normalizer_SNL in zip(ctx.runs, normalizers, strict=True):
            length = run.num_tokens_each
            is_windowed = ctx.sliding_window is not None and length > ctx.sliding_window
            if takes_products(query_NTH.dtype, length, length) and not is_windowed:
                # A call for each sequence: nobody knows what a batched product's bits depend on.
                for start, normalizer_NL in zip(run.starts, normalizer_SNL, strict=True):
                    rows = slice(start, start + length)
                    gradients = product_gradients(
                        gradient.whole_NTH[:, rows],
                        query_NTH[:, rows],
                        key_GTH[:, rows],
                        value_GTH[:, rows],
                        out.whole_NTH[:, rows],
                        normalizer_NL,
                        ctx.scaling,
                        is_causal=True,
                    )
                    for each, of_one_NLH in zip(found, gradients, strict=True):
                        each.whole_NTH[:, rows] = of_one_NLH
                continue
            gradients = _backward(
                gradient.of(run),
                *(each.of(run) for each in heads),
                out.of(run),
                normalizer_SNL,
                **_arguments(run, heads[0], ctx.scaling, ctx.sliding_window),
            )
            for each, of_run in zip(found, gradients, strict=True):
                each.write(run, of_run)
        return (*(each.whole_NTH for each in found), None, None, None)


class _Heads:
    """Heads of all packed tokens, and a run's part of them as the kernel wants it."""

    def __init__(self, whole_NTH: Tensor) -> None:
        self.whole_NTH = whole_NTH
        self._by_dtype: dict[torch.dtype, Tensor] = {}

    def of(self, run: Run) -> Tensor:
        """Heads [S, N, L, H] of one run, with tokens at aligned addresses."""
        return _cut(self._in(compute_dtype(run, self.whole_NTH.dtype)), run)

    def write(self, run: Run, heads_SNLH: Tensor) -> None:
        """Put what a call returned where it belongs."""
        _cut(self.whole_NTH, run).copy_(heads_SNLH)

    def _in(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._by_dtype:
            self._by_dtype[dtype] = _tokens_first(self.whole_NTH, dtype)
        return self._by_dtype[dtype]


def compute_dtype(run: Run, dtype: torch.dtype) -> torch.dtype:
    """What a run is computed in; depends on its own sequences alone."""
    return torch.float32 if run.num_tokens_each <= _MAX_CAST_TOKENS else dtype


def _cut(heads_NTH: Tensor, run: Run) -> Tensor:
    size = run.num_sequences * run.num_tokens_each
    rows_NTH = heads_NTH[:, run.start : run.start + size]
    return rows_NTH.unflatten(1, (run.num_sequences, run.num_tokens_each)).transpose(0, 1)


def _tokens_first(heads_NTH: Tensor, dtype: torch.dtype) -> Tensor:
    """The heads themselves, or a copy, where each token's are together at an aligned address."""
    head_size = heads_NTH.shape[2]
    is_packed = heads_NTH.stride(2) == 1 and heads_NTH.stride(0) == head_size
    stride = heads_NTH.stride(1)
    if heads_NTH.dtype == dtype and is_packed and stride == aligned_width(stride, dtype):
        return heads_NTH
    return _empty_tokens_first(heads_NTH, dtype).copy_(heads_NTH)


def _empty_tokens_first(heads_NTH: Tensor, dtype: torch.dtype) -> Tensor:
    num_heads, _, head_size = heads_NTH.shape
    rows_TC = empty_with_aligned_rows(heads_NTH, num_heads * head_size, dtype)
    return rows_TC.unflatten(1, (num_heads, head_size)).transpose(0, 1)


def _zeros_tokens_first(heads_NTH: Tensor) -> Tensor:
    num_heads, num_rows, head_size = heads_NTH.shape
    return heads_NTH.new_zeros(num_rows, num_heads, head_size).transpose(0, 1)


def _arguments(
    run: Run, query: _Heads, scaling: float, sliding_window: int | None
) -> dict[str, Any]:
    """What the kernel is told beside the heads: causal, or the mask of a window."""
    length = run.num_tokens_each
    if sliding_window is None or length <= sliding_window:
        return {"dropout_p": 0.0, "is_causal": True, "scale": scaling}
    visible_LL = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - sliding_window)
    dtype = compute_dtype(run, query.whole_NTH.dtype)
    mask_LL = torch.zeros(length, length, dtype=dtype).masked_fill_(~visible_LL, -torch.inf)
    return {"dropout_p": 0.0, "is_causal": False, "attn_mask": mask_LL, "scale": scaling}
