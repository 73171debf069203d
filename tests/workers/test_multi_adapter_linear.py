"""The multi-adapter linear layer against one plain linear layer and product per segment.

Legend: T packed tokens, D features in, F features out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cyclora_core.operations import LoraConfig
from cyclora_workers.adapter import (
    AdapterLayout,
    AdapterWeights,
    ModuleGroup,
    TargetModule,
)
from cyclora_workers.attention import PackedAttention
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.multi_adapter_linear import MultiAdapterLinear, PassHolder
from parity.tolerances import FORWARD, GRADIENT, close

IN, OUT = 24, 40
MODULES = [
    TargetModule("layer", IN, OUT, ModuleGroup.MLP),
    TargetModule("elsewhere", IN, OUT, ModuleGroup.ATTN),
]
CPU = torch.device("cpu")


def adapter(
    rank: int, dtype: torch.dtype = torch.float32, *, trained: bool = True, **flags: bool
) -> AdapterWeights:
    layout = AdapterLayout(MODULES, LoraConfig(rank, **{"train_unembed": False, **flags}))
    generator = torch.Generator().manual_seed(rank)
    flat_P = (torch.randn(layout.num_elements, generator=generator) * 0.3).to(dtype)
    return layout.weights(flat_P, torch.zeros(layout.num_elements) if trained else None)


class Layer:
    """A layer with its holder, called as a base model would call it."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> None:
        torch.manual_seed(0)
        self.linear = nn.Linear(IN, OUT, bias=bias).to(dtype).requires_grad_(False)
        self.holder = PassHolder(CPU)
        self.module = MultiAdapterLinear("layer", self.linear, self.holder)

    def __call__(self, x_TD: Tensor, segments: Sequence[Segment]) -> Tensor:
        self.holder.context = PassContext(segments, PackedAttention([0, x_TD.shape[0]]))
        return self.module(x_TD[None])[0]


def reference(layer: Layer, x_TD: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Each segment by itself, in fp32, left to autograd."""
    parts: list[Tensor] = []
    bias: Any = layer.linear.bias
    bias = None if bias is None else bias.float()
    for segment in segments:
        rows = x_TD[segment.start : segment.stop].float()
        y = nn.functional.linear(rows, layer.linear.weight.float(), bias)
        module = segment.adapter and segment.adapter.modules.get("layer")
        if segment.adapter and module:
            low = rows @ module.lora_A_RD.float().T
            y = y + segment.adapter.scaling * low @ module.lora_B_FR.float().T
        parts.append(y)
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_mixed_segments_match_a_loop_over_segments(dtype: torch.dtype, bias: bool) -> None:
    layer = Layer(dtype, bias=bias)
    segments = [
        Segment(0, 1, adapter(4, dtype)),
        Segment(1, 40, adapter(1, dtype)),
        Segment(40, 47, None),
        Segment(47, 90, adapter(8, dtype)),
        Segment(90, 96, adapter(2, dtype, train_mlp=False)),
    ]
    ours = torch.randn(96, IN).to(dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weights_TF = torch.randn(96, OUT)
    y_TF, expected_TF = layer(ours, segments), reference(layer, theirs, segments)

    (y_TF.float() * weights_TF).sum().backward()
    (expected_TF * weights_TF).sum().backward()

    close(y_TF, expected_TF, FORWARD[dtype])
    assert ours.grad is not None
    assert theirs.grad is not None
    close(ours.grad, theirs.grad, GRADIENT[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_gradients_match_autograd_in_fp32(dtype: torch.dtype) -> None:
    layer = Layer(dtype)
    weights = adapter(4, dtype)
    module = weights.modules["layer"]
    x_TD, dy_TF = torch.randn(64, IN).to(dtype), torch.randn(64, OUT).to(dtype)
    layer(x_TD, [Segment(0, 7, None), Segment(7, 50, weights)]).backward(dy_TF)

    lora_A = module.lora_A_RD.float().requires_grad_()
    lora_B = module.lora_B_FR.float().requires_grad_()
    low = weights.scaling * (x_TD[7:50].float() @ lora_A.T) @ lora_B.T
    low.backward(dy_TF[7:50].float())

    assert module.gradient_A_RD is not None
    assert module.gradient_B_FR is not None
    close(module.gradient_A_RD, lora_A.grad, GRADIENT[dtype])  # type: ignore[arg-type]
    close(module.gradient_B_FR, lora_B.grad, GRADIENT[dtype])  # type: ignore[arg-type]
    assert module.gradient_A_RD.dtype == torch.float32


def test_an_input_that_needs_no_gradient_gets_none_but_the_adapter_does() -> None:
    layer, weights = Layer(), adapter(4)
    x_TD = torch.randn(32, IN)

    y_TF = layer(x_TD, [Segment(0, 32, weights)])
    y_TF.sum().backward()

    assert x_TD.grad is None
    assert layer.holder.gradient_anchor.grad is None
    assert layer.linear.weight.grad is None
    assert weights.modules["layer"].gradient_B_FR.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "weights",
    [None, adapter(4, trained=False), adapter(4, train_mlp=False)],
    ids=["base model", "frozen copy", "adapter elsewhere"],
)
def test_without_a_trained_adapter_no_graph_is_built(weights: AdapterWeights | None) -> None:
    y_TF = Layer()(torch.randn(32, IN), [Segment(0, 32, weights)])

    assert not y_TF.requires_grad


def test_a_frozen_copy_passes_the_gradient_on_to_what_is_below() -> None:
    layer, weights = Layer(), adapter(4, trained=False)
    x_TD = torch.randn(32, IN, requires_grad=True)
    layer(x_TD, [Segment(0, 32, weights)]).sum().backward()
    expected_TD = x_TD.detach().clone().requires_grad_()
    reference(layer, expected_TD, [Segment(0, 32, weights)]).sum().backward()

    assert x_TD.grad is not None
    torch.testing.assert_close(x_TD.grad, expected_TD.grad)


@pytest.mark.parametrize("num_rows", [1, 5, 31, 32, 33, 64])
def test_a_row_has_the_same_bits_in_segments_of_any_length(num_rows: int) -> None:
    """A decode step has one row of an adapter where training had many."""
    layer, weights = Layer(), adapter(3)
    x_TD = torch.randn(96, IN)
    whole_TF = layer(x_TD, [Segment(0, 96, weights)])

    part_TF = layer(x_TD, [Segment(10, 10 + num_rows, weights)])

    rows = slice(10, 10 + num_rows)
    assert torch.equal(part_TF[rows], whole_TF[rows])


def test_gradients_accumulate_over_passes() -> None:
    layer, weights = Layer(), adapter(4)
    x_TD = torch.randn(32, IN)
    gradient = weights.modules["layer"].gradient_A_RD
    assert gradient is not None
    layer(x_TD, [Segment(0, 32, weights)]).sum().backward()
    once = gradient.clone()

    layer(x_TD, [Segment(0, 32, weights)]).sum().backward()

    torch.testing.assert_close(gradient, 2 * once)
