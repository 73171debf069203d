"""Activation functions whose bits do not depend on where in a pack an element lies.

On CPU torch hands each thread one stretch of a large tensor; the last few elements of a stretch
that is no multiple of the vector width take a scalar path, whose exponential may differ in the
last bit. Where stretches end depends on how many rows there are: on the neighbours. So large
tensors are computed in stretches that all are such multiples.

Legend: E elements of a tensor of any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_VECTOR_ELEMENTS = 32
"""A multiple of what torch's CPU kernels handle per step, whatever the instruction set."""

_SERIAL_ELEMENTS = 16_384
"""torch computes this many elements in one thread, whatever the function (GELU splits earliest)."""

_GRAIN_ELEMENTS = 32_768
"""From this many elements per thread on, every thread gets an equal share."""


def stretches(num_elements: int) -> Iterator[slice]:
    """Cover the elements by calls that torch splits between vectors only, or not at all."""
    num_threads = torch.get_num_threads()
    step = num_threads * _VECTOR_ELEMENTS
    start = 0
    if num_elements >= num_threads * _GRAIN_ELEMENTS:
        start = num_elements // step * step
        yield slice(0, start)
    for begin in range(start, num_elements, _SERIAL_ELEMENTS):
        yield slice(begin, min(begin + _SERIAL_ELEMENTS, num_elements))


def _stretchwise(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Shapes: x contiguous; returns the same shape."""
    x_E = x.view(-1)
    parts = list(stretches(x_E.shape[0]))
    if len(parts) == 1:
        return function(x)
    y = torch.empty_like(x)
    y_E = y.view(-1)
    for part in parts:
        y_E[part] = function(x_E[part])
    return y


class _StretchwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        x = x.contiguous()
        ctx.function = function
        ctx.save_for_backward(x)
        return _stretchwise(x, function)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        x_E, dy_E = x.view(-1), grad_outputs[0].reshape(-1)
        dx_E = torch.empty_like(x_E)
        for part in stretches(x_E.shape[0]):
            with torch.enable_grad():
                leaf_E = x_E[part].detach().requires_grad_()
                y_E = ctx.function(leaf_E)
            (dx_E[part],) = torch.autograd.grad(y_E, leaf_E, dy_E[part])
        return dx_E.view_as(x), None


class StableActivation(nn.Module):
    """Computes an elementwise activation of a model on CPU; rows aligned to ``ROW_ALIGNMENT``."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _stretchwise(x.contiguous(), self.function)
        y: Tensor = _StretchwiseFunction.apply(x, self.function)  # type: ignore[no-untyped-call]
        return y


def stabilize_activations(layer: nn.Module) -> None:
    """Wrap the activation modules inside a decoder layer."""
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if is_activation(child):
                setattr(parent, name, StableActivation(child))


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation function of torch or transformers."""
    if any(True for _ in module.parameters()):
        return False
    return isinstance(module, _TORCH_ACTIVATIONS) or (
        type(module).__module__ == "transformers.activations"
    )


_TORCH_ACTIVATIONS = (nn.SiLU, nn.GELU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU)
