"""RMSNorm as one autograd function: fewer passes over memory, and only its input is kept.

Written out in PyTorch, as transformers does it, autograd keeps three copies of the input in fp32
and runs about a dozen element-wise operators; here the backward recomputes what it needs.

Legend: H elements of a row; any number of dimensions before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_MAX_ERROR = 8.0
"""Relative to the precision of the dtype, of what stands in for a module of the base model."""


def normalized(x_32: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows divided by their root mean square, and the factor of each row.

    ::

        factor = 1 / sqrt(mean(x^2) + eps)

    Shapes:
        x_32: fp32 [..., H]. Returns [..., H] and [..., 1].
    """
    squares = x_32 * x_32
    factor = torch.rsqrt(squares.mean(-1, keepdim=True).add_(eps))
    return torch.mul(x_32, factor, out=squares), factor


def normalized_backward_(dy_32: Tensor, normalized_32: Tensor, factor: Tensor) -> Tensor:
    """From the gradient by the normalized rows to that by the rows; uses both arguments up.

    ::

        dx = factor * (dy - normalized * mean(dy * normalized))
    """
    mean = (dy_32 * normalized_32).mean(-1, keepdim=True)
    return dy_32.sub_(normalized_32.mul_(mean)).mul_(factor)


def _rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    normalized_32, _ = normalized(x.float(), eps)
    return normalized_32.mul_(weight_H).to(x.dtype)


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight_H, ctx.eps = weight_H, eps
        return _rms_norm(x, weight_H, eps)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        normalized_32, factor = normalized(x.float(), ctx.eps)
        dy_32 = grad_outputs[0].float() * ctx.weight_H
        return normalized_backward_(dy_32, normalized_32, factor).to(x.dtype), None, None


class FusedRMSNorm(nn.Module):
    """A frozen RMSNorm of the base model; its weight, in fp32, multiplies the normalized row."""

    def __init__(self, weight_H: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_H, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., H]."""
        if not torch.is_grad_enabled():
            return _rms_norm(x, self.weight, self.eps)
        y: Tensor = _RMSNormFunction.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return y


@torch.no_grad()
def fused_norm(module: nn.Module) -> FusedRMSNorm | None:
    """What computes the same as this module, if it is an RMSNorm; None otherwise.

    Recognised by what it computes, not by its name: families differ in whether the stored weight
    is the factor itself or what is added to 1.
    """
    parameters = dict(module.named_parameters())
    eps: Any = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if list(parameters) != ["weight"] or parameters["weight"].dim() != 1:
        return None
    if not isinstance(eps, float):
        return None
    weight_H = parameters["weight"]
    generator = torch.Generator().manual_seed(0)
    # The second row is so small that eps shows.
    scales = torch.tensor([[1.0], [eps**0.5], [30.0]])
    x_3H = torch.randn(3, weight_H.shape[0], generator=generator) * scales
    x_3H = x_3H.to(weight_H)
    expected: Tensor = module(x_3H)
    for factor_H in (weight_H.float(), 1.0 + weight_H.float()):
        candidate = FusedRMSNorm(factor_H, eps)
        if is_same(candidate(x_3H), expected):
            return candidate
    return None


def is_same(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by roundings only: row by row, relative to the row's norm."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    error = (found.float() - expected.float()).norm(dim=-1)
    bound = _MAX_ERROR * torch.finfo(expected.dtype).eps * expected.float().norm(dim=-1)
    return bool((error <= bound).all())


def fuse_norms(model: nn.Module) -> int:
    """Replace every RMSNorm inside a model; returns how many there were."""
    found = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            fused = fused_norm(child)
            if fused is not None:
                setattr(parent, name, fused)
                found += 1
    return found
