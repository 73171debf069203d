"""Attention of packed training sequences in one call, by torch's variable-length flash kernel.

Legend: T packed tokens, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from cyclora_workers.attention import PackedAttention
from cyclora_workers.transfer import to_device

_MAX_HEAD_SIZE = 256
_HEAD_ALIGNMENT = 8
_LEAST_COMPUTE_CAPABILITY = (8, 0)

_LEAST_MAX_QUERIES = 2
"""With one query per sequence the kernel splits keys by how many sequences there are, so that a
sequence's sums would depend on its neighbours; told of two it never does."""


def is_supported(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether torch's flash kernel computes this; in fp32 it does not."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_size <= _MAX_HEAD_SIZE
        and head_size % _HEAD_ALIGNMENT == 0
        and torch.cuda.get_device_capability(device) >= _LEAST_COMPUTE_CAPABILITY
    )


class VarlenAttention:
    """Implements ``AttentionPlan``: causal inside each packed sequence, never across two of them.

    The rows that only align the pack are one more sequence. Their output is finite and nobody
    reads it: writing zeros over it would cost a pass over all rows in every layer.
    """

    def __init__(self, cu_seqlens: Sequence[int], num_rows: int, device: torch.device) -> None:
        """Plan a pack.

        Args:
            cu_seqlens: where the sequences begin and end.
            num_rows: rows of the queries, at least the last of ``cu_seqlens``.
            device: where the queries will be.
        """
        assert num_rows >= cu_seqlens[-1], "the sequences do not fit into the rows"
        bounds = list(cu_seqlens)
        if num_rows > bounds[-1]:
            bounds.append(num_rows)
        longest = max((stop - start for start, stop in pairwise(bounds)), default=0)
        self._num_rows = num_rows
        self._bounds = bounds
        self._max_tokens = max(longest, _LEAST_MAX_QUERIES)
        self._cu_seqlens = to_device(torch.tensor(bounds, dtype=torch.int32), device)

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
        """Implements ``AttentionPlan.attend``; sinks, which the kernel lacks, take the slow way."""
        if sinks_N is not None:
            return PackedAttention(self._bounds).attend(
                layer_index, query_NTH, key_GTH, value_GTH, scaling, sliding_window, sinks_N
            )
        assert query_NTH.shape[1] == self._num_rows, "planned for another number of rows"
        query_TNH, key_TGH = query_NTH.transpose(0, 1), key_GTH.transpose(0, 1)
        value_TGH = value_GTH.transpose(0, 1)
        # A window counts the query itself, the kernel counts what is to the left of it.
        left = -1 if sliding_window is None else sliding_window - 1
        if not torch.is_grad_enabled():
            return self.call(query_TNH, key_TGH, value_TGH, scaling, left)
        attended_TNH: Tensor = _VarlenFunction.apply(  # type: ignore[no-untyped-call]
            query_TNH, key_TGH, value_TGH, self, scaling, left
        )
        return attended_TNH

    def call(
        self, query_TNH: Tensor, key_TGH: Tensor, value_TGH: Tensor, scaling: float, left: int
    ) -> Tensor:
        """One call of the kernel, which torch differentiates; ``left`` -1 is no window."""
        attended: Any = varlen.varlen_attn(
            query_TNH,
            key_TGH,
            value_TGH,
            self._cu_seqlens,
            self._cu_seqlens,
            self._max_tokens,
            self._max_tokens,
            scale=scaling,
            window_size=(left, 0),
            enable_gqa=query_TNH.shape[1] != key_TGH.shape[1],
        )
        return attended


class _VarlenFunction(torch.autograd.Function):
    """The call, with a backward pass that forms its sums in the same order every time."""

    @staticmethod
    def forward(
        ctx: Any,
        query_TNH: Tensor,
        key_TGH: Tensor,
        value_TGH: Tensor,
        plan: VarlenAttention,
        scaling: float,
        left: int,
    ) -> Tensor:
        ctx.inputs = [
            each.detach().requires_grad_(needed)
            for each, needed in zip(
                (query_TNH, key_TGH, value_TGH), ctx.needs_input_grad[:3], strict=True
            )
        ]
        with torch.enable_grad():
            query, key, value = ctx.inputs
            ctx.output = plan.call(query, key, value, scaling, left)
        return ctx.output.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, output = ctx.inputs, ctx.output
        # The graph inside goes now, not when the whole backward pass is over.
        del ctx.inputs, ctx.output
        wanted = [each for each in inputs if each.requires_grad]
        with deterministic_sums():
            found = iter(torch.autograd.grad(output, wanted, grad_outputs[0]))
        gradients = [next(found) if each.requires_grad else None for each in inputs]
        return *gradients, None, None, None


@contextmanager
def deterministic_sums() -> Generator[None]:
    """Kernels queued inside take the variant without atomic additions where they have one.

    Only around calls that have one: torch refuses others, and some of a Hugging Face model's do
    not.
    """
    settings: Any = torch.utils.deterministic  # type: ignore[attr-defined]
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = before[2]
