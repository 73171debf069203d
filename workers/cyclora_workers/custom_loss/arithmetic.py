"""Elementwise operations of custom losses, and losses of two tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclora_core.errors import UserError

Function = Callable[..., Any]
Compare = Callable[[Tensor, Tensor], Tensor]

_MAX_EXPONENT = 53


def scaled(function: Function) -> Function:
    """``add`` or ``sub`` of ``alpha`` times the second operand."""

    def run(input: Any, other: Any, alpha: float) -> Any:
        return function(input, other if alpha == 1 else other * alpha)

    return run


def divided(function: Function) -> Function:
    """A division that rounds, of which integers need care."""

    def run(input: Any, other: Any) -> Any:
        _refuse_lowest(input)
        return function(input, other)

    return run


def div(input: Any, other: Any, rounding_mode: str | None) -> Any:
    if rounding_mode is None:
        return operator.truediv(input, other)
    if not isinstance(input, Tensor):
        raise UserError("rounding_mode is for tensors; use // with numbers")
    _refuse_lowest(input)
    return torch.div(input, other, rounding_mode=rounding_mode)


def _refuse_lowest(input: Any) -> None:
    """The most negative integer divided by -1 has no result, and the processor ends the process."""
    if not isinstance(input, Tensor) or input.dtype not in (torch.int64, torch.int32):
        return
    if bool((input == torch.iinfo(input.dtype).min).any()):
        raise UserError("it divides the most negative integer")


def power(input: Any, exponent: Any) -> Any:
    if isinstance(input, Tensor) or isinstance(exponent, Tensor):
        return operator.pow(input, exponent)
    if isinstance(input, int) and isinstance(exponent, int) and exponent > _MAX_EXPONENT:
        input = float(input)  # as an integer, its digits would be without bound
    result = input**exponent
    if isinstance(result, complex):
        raise UserError("a root of a negative number is not real")
    return result


def relu(input: Tensor, inplace: bool) -> Tensor:
    return torch.relu(input)


def leaky_relu(input: Tensor, negative_slope: float, inplace: bool) -> Tensor:
    return functional.leaky_relu(input, negative_slope)


def elu(input: Tensor, alpha: float, inplace: bool) -> Tensor:
    return functional.elu(input, alpha)


def gelu(input: Tensor, approximate: str) -> Tensor:
    return functional.gelu(input, approximate=approximate)


def silu(input: Tensor, inplace: bool) -> Tensor:
    return functional.silu(input)


def where_method(input: Tensor, condition: Tensor, other: Any) -> Tensor:
    return torch.where(condition, input, other)


def mse_loss(
    input: Tensor, target: Tensor, size_average: None, reduce: None, reduction: str, weight: None
) -> Tensor:
    return _reduced(input, target, reduction, lambda x, y: (x - y).square())


def l1_loss(
    input: Tensor, target: Tensor, size_average: None, reduce: None, reduction: str, weight: None
) -> Tensor:
    return _reduced(input, target, reduction, lambda x, y: (x - y).abs())


def smooth_l1_loss(
    input: Tensor, target: Tensor, size_average: None, reduce: None, reduction: str, beta: float
) -> Tensor:
    def compare(x: Tensor, y: Tensor) -> Tensor:
        return functional.smooth_l1_loss(x, y, reduction="none", beta=beta)

    return _reduced(input, target, reduction, compare)


def huber_loss(input: Tensor, target: Tensor, reduction: str, delta: float, weight: None) -> Tensor:
    def compare(x: Tensor, y: Tensor) -> Tensor:
        return functional.huber_loss(x, y, reduction="none", delta=delta)

    return _reduced(input, target, reduction, compare)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: None,
    reduce: None,
    reduction: str,
    log_target: bool,
) -> Tensor:
    def compare(x: Tensor, y: Tensor) -> Tensor:
        return functional.kl_div(x, y, reduction="none", log_target=log_target)

    return _reduced(input, target, reduction, compare)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: None,
    reduce: None,
    reduction: str,
    pos_weight: Tensor | None,
) -> Tensor:
    def compare(x: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            x, y, weight, reduction="none", pos_weight=pos_weight
        )

    return _reduced(input, target, reduction, compare)


def _reduced(input: Tensor, target: Tensor, reduction: str, compare: Compare) -> Tensor:
    """Torch would broadcast tensors of two shapes, with a warning that nobody sees here."""
    if input.shape != target.shape:
        raise UserError(
            f"its tensors have shapes {list(input.shape)} and {list(target.shape)}; they must be "
            "equal"
        )
    values = compare(input, target)
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()
