"""Operations of custom losses that sum, search or order along axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclora_core.errors import UserError

Function = Callable[..., Any]


class Pair(NamedTuple):
    """What an operation gives that has both values and their places."""

    values: Tensor
    indices: Tensor


def axes_of(input: Tensor, dim: Any) -> tuple[int, ...]:
    """The axes that ``dim`` names, counted from the front; None is all of them."""
    if dim is None:
        return tuple(range(input.ndim))
    axes: tuple[int, ...] = dim if isinstance(dim, tuple) else (dim,)
    for axis in axes:
        if not -input.ndim <= axis < input.ndim:
            raise UserError(f"axis {axis} is out of range for {input.ndim} axes")
    return tuple(axis % input.ndim for axis in axes)


def along_any(function: Function) -> Function:
    """A reduction along one axis, several, or all of them."""

    def run(input: Tensor, dim: Any, keepdim: bool, dtype: torch.dtype | None = None) -> Tensor:
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        return function(input, axes_of(input, dim), keepdim=keepdim, **options)

    return run


def logical(function: Function) -> Function:
    """``any`` or ``all``, whose form without an axis is another one."""

    def run(input: Tensor, dim: Any, keepdim: bool) -> Tensor:
        return function(input) if dim is None else function(input, dim, keepdim=keepdim)

    return run


def spread(function: Function) -> Function:
    """``var`` or ``std``; torch warns where there are too few values."""

    def run(
        input: Tensor, dim: Any, unbiased: bool | None, keepdim: bool, correction: int | None
    ) -> Tensor:
        if unbiased is not None and correction is not None:
            raise UserError("unbiased and correction say the same; give one of them")
        less = correction if correction is not None else int(unbiased is not False)
        axes = axes_of(input, dim)
        count = math.prod(input.shape[axis] for axis in axes)
        if count <= less:
            raise UserError(f"it needs more than {less} values, and there are {count}")
        return function(input, axes, correction=less, keepdim=keepdim)

    return run


def extreme(function: Function, of_two: Function) -> Function:
    """``max`` or ``min`` of all elements, along an axis, or of two tensors."""

    def run(input: Tensor, dim: Any, keepdim: bool) -> Any:
        if dim is None:
            return function(input)
        if isinstance(dim, Tensor):
            return of_two(input, dim)
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise UserError("it takes an axis or a tensor as its second argument")
        return Pair(*function(input, dim, keepdim))

    return run


def vector_norm(
    input: Tensor, order: Any, dim: Any, keepdim: bool, dtype: torch.dtype | None
) -> Tensor:
    wanted = 2 if order == "fro" else order
    return torch.linalg.vector_norm(input, wanted, dim, keepdim, dtype=dtype)


def norm(
    input: Tensor, p: Any, dim: Any, keepdim: bool, out: None, dtype: torch.dtype | None
) -> Tensor:
    return vector_norm(input, p, dim, keepdim, dtype)


def softmax(function: Function) -> Function:
    """``softmax`` or ``log_softmax``."""

    def run(input: Tensor, dim: int, dtype: torch.dtype | None, _stacklevel: int) -> Tensor:
        return function(input, dim, dtype=dtype)

    return run


def cumsum(input: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
    return torch.cumsum(input, dim, dtype=dtype)


# Stable always: which of two equal elements comes first must not depend on anything else.
def sort(input: Tensor, dim: int, descending: bool, stable: bool) -> Pair:
    return Pair(*torch.sort(input, dim=dim, descending=descending, stable=True))


def argsort(input: Tensor, dim: int, descending: bool, stable: bool) -> Tensor:
    return torch.argsort(input, dim=dim, descending=descending, stable=True)


def topk(input: Tensor, k: int, dim: int, largest: bool, sorted: bool) -> Pair:
    return Pair(*torch.topk(input, k, dim, largest, sorted))


def of_pair(place: int) -> Function:
    """``values`` or ``indices``."""

    def run(input: Any) -> Tensor:
        if not isinstance(input, Pair):
            raise UserError("only max, min, sort and topk along an axis give values and indices")
        return input[place]

    return run
