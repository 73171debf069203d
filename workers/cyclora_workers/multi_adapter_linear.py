"""A frozen linear layer whose rows may each belong to another adapter.

The frozen product runs once over all rows; the low-rank part runs per segment, inside one
autograd function: slicing under autograd would build a zero-padded gradient per slice.

Legend: T packed tokens (rows), N rows of one segment, D features in, F features out, R lora_rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cyclora_workers.context import PassContext
from cyclora_workers.cuda.grouped_linear import grouped_linear
from cyclora_workers.cuda.low_rank import LowRank
from cyclora_workers.cuda.segment_table import SegmentTable
from cyclora_workers.frozen_weight import FrozenWeight
from cyclora_workers.low_rank import (
    SegmentAdapter,
    add_low_rank_,
    add_low_ranks_,
    low_ranks_backward_,
    segment_adapters,
)
from cyclora_workers.quantized_weight import QuantizedLinear, frozen_weight
from cyclora_workers.rows import with_aligned_rows


class PassHolder:
    """Where the linear layers of one base model find the pass that is running.

    Hugging Face forwards keyword arguments to the attention function but not to linear layers. One
    holder per base model: two base models in one process must not see each other's passes.
    """

    def __init__(self, device: torch.device) -> None:
        self.context: PassContext | None = None
        self.gradient_anchor = torch.zeros((), device=device, requires_grad=True)
        """Makes the first adapted layer's output require a gradient although its input does not;
        so the backward pass reaches that layer and nothing below it."""


class _MultiAdapterFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor | None,
        weight: FrozenWeight,
        bias_F: Tensor | None,
        segments: Sequence[SegmentAdapter],
    ) -> Tensor:
        x_TD = with_aligned_rows(x_TD)
        y_TF = weight.product(x_TD, bias_F)
        lows = [add_low_rank_(y_TF, x_TD, segment) for segment in segments]
        ctx.weight = weight
        ctx.segments = segments
        ctx.lows = lows
        ctx.save_for_backward(x_TD if anchor is not None else None)
        return y_TF.contiguous()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy_TF = with_aligned_rows(grad_outputs[0].contiguous())
        (x_TD,) = ctx.saved_tensors
        dx_TD = None
        if ctx.needs_input_grad[0]:
            dx_TD = ctx.weight.transposed_product(dy_TF)
        low_ranks_backward_(ctx.segments, ctx.lows, dy_TF, x_TD, dx_TD)
        return None if dx_TD is None else dx_TD.contiguous(), None, None, None, None


class MultiAdapterLinear(nn.Module):
    """Stands in for an ``nn.Linear`` of the base model; knows its name and its base model's holder.

    Gradients of the adapters go straight into their flat buffers, none is made for the frozen
    weight, and none for the input unless something below wants it.
    """

    def __init__(self, name: str, linear: nn.Linear | QuantizedLinear, holder: PassHolder) -> None:
        super().__init__()
        self.name = name
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = frozen_weight(linear)
        self.bias = linear.bias
        self._holder = holder

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., D] with T rows in all, of which the segments cover the first ones."""
        context = self._holder.context
        assert context is not None, "the base model is only called through BaseModel"
        if context.segment_table is not None:
            return self._grouped(x, context.segment_table)
        if not torch.is_grad_enabled():
            return self._without_gradient(x, context)
        segments = segment_adapters(context.segments, self.name)
        wants_gradient = any(segment.adapter.gradient_A_RD is not None for segment in segments)
        y_TF: Tensor = _MultiAdapterFunction.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, self.in_features),
            self._holder.gradient_anchor if wants_gradient else None,
            self.weight,
            self.bias,
            segments,
        )
        return y_TF.view(*x.shape[:-1], self.out_features)

    def _without_gradient(self, x: Tensor, context: PassContext) -> Tensor:
        """What the autograd function computes, to the bit, and nothing that only it needs."""
        x_TD = with_aligned_rows(x.reshape(-1, self.in_features))
        y_TF = self.weight.product(x_TD, self.bias)
        add_low_ranks_(y_TF, x_TD, self.name, context.segments, context.stacked)
        return y_TF.contiguous().view(*x.shape[:-1], self.out_features)

    def _grouped(self, x: Tensor, table: SegmentTable) -> Tensor:
        low_rank = LowRank.of(table, self.name)
        wants_gradient = torch.is_grad_enabled() and low_rank.is_trained
        y_TF = grouped_linear(
            x.reshape(-1, self.in_features),
            self.weight,
            self.bias,
            low_rank,
            self._holder.gradient_anchor if wants_gradient else None,
        )
        return y_TF.view(*x.shape[:-1], self.out_features)
