"""Activations have the same bits wherever an element lies and however many threads there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from cyclora_workers.activation import StableActivation, stabilize_activations
from workers.sampling.builders import threads

NUM_FEATURES = 256


@pytest.fixture(params=[1, 2, 3, 5])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with threads(request.param):
        yield request.param


def forward_backward(function: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, torch.cos(x))
    return y.detach(), gradient


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_a_row_has_the_same_bits_among_any_number_of_rows(name: str) -> None:
    """Plain torch fails this with three threads: where a thread's stretch ends depends on T."""
    function = StableActivation(ACT2FN[name])
    x = 3 * torch.randn(1024, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    whole = forward_backward(function, x)

    for num_rows in (32, 352, 480, 992):
        part = forward_backward(function, x[:num_rows])
        for ours, theirs in zip(part, whole, strict=True):
            assert torch.equal(ours, theirs[:num_rows])


@pytest.mark.parametrize("name", ["silu", "gelu"])
@pytest.mark.parametrize("num_rows", [32, 320])
def test_values_and_gradients_are_those_of_the_plain_function(name: str, num_rows: int) -> None:
    x = 3 * torch.randn(num_rows, NUM_FEATURES)

    ours = forward_backward(StableActivation(ACT2FN[name]), x)

    for mine, theirs in zip(ours, forward_backward(ACT2FN[name], x), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_an_input_that_is_not_contiguous_is_as_good() -> None:
    x = torch.randn(32, 2 * NUM_FEATURES)[:, ::2]

    y, gradient = forward_backward(StableActivation(nn.SiLU()), x)

    torch.testing.assert_close(y, nn.functional.silu(x))
    assert gradient.shape == x.shape


def test_only_elementwise_activations_are_wrapped() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), ACT2FN["gelu_new"], nn.Softmax(-1))

    stabilize_activations(layer)

    wrapped = [isinstance(module, StableActivation) for module in layer]
    assert wrapped == [False, True, True, False]
