"""How many elements an operation of a custom loss will make, known before it allocates any."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cyclora_core.custom_loss import MAX_VALUE_ELEMENTS
from cyclora_core.errors import UserError

_MAX_PRODUCTS = 2**31
"""Multiplications of one matrix product."""


def num_elements(operation: str, arguments: Sequence[Any]) -> int:
    """Upper bound on the elements of an operation's result, from its arguments' shapes.

    Unless the operation is known to make something else, that is what its tensors broadcast to.
    Arguments that do not fit one another give any number: the operation itself refuses them.
    """
    count = _COUNTS.get(operation)
    if count is not None:
        return count(*arguments)
    return _broadcast([each.shape for each in arguments if isinstance(each, Tensor)])


def _broadcast(shapes: Sequence[Sequence[int]]) -> int:
    if not shapes:
        return 1
    if all(shape == shapes[0] for shape in shapes):
        return math.prod(shapes[0])
    ndim = max(len(shape) for shape in shapes)
    padded = [[1] * (ndim - len(shape)) + list(shape) for shape in shapes]
    return math.prod(0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True))


def _matmul(input: Tensor, other: Tensor) -> int:
    if not (1 <= input.ndim <= 2 and 1 <= other.ndim <= 2):
        raise UserError(f"it takes vectors and matrices, not {input.ndim} and {other.ndim} axes")
    rows = input.shape[0] if input.ndim == 2 else 1
    columns = other.shape[1] if other.ndim == 2 else 1
    if rows * columns * input.shape[-1] > _MAX_PRODUCTS:
        raise UserError(f"it takes more than {_MAX_PRODUCTS} multiplications")
    return rows * columns


def _expand(input: Tensor, size: Sequence[int]) -> int:
    kept = [1] * (len(size) - input.ndim) + list(input.shape)
    return math.prod(own if new == -1 else new for new, own in zip(size, kept, strict=False))


def _arange(start: float, end: float | None, step: float, *_unused: Any) -> int:
    first, last = (0, start) if end is None else (start, end)
    found = (last - first) / step
    if not 0 <= found <= MAX_VALUE_ELEMENTS:
        raise UserError(f"it would have {found:g} elements; 0 to {MAX_VALUE_ELEMENTS} are accepted")
    return math.ceil(found)


def _index_select(input: Tensor, dim: int, index: Tensor) -> int:
    if not -input.ndim <= dim < input.ndim:
        return 0
    return index.numel() * math.prod(s for d, s in enumerate(input.shape) if d != dim % input.ndim)


def _getitem(input: Any, index: Any) -> int:
    """Axes that tensors index are replaced by what these broadcast to; slices keep theirs."""
    if not isinstance(input, Tensor):
        return 0
    items: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    num_indexed = sum(_num_axes(item) for item in items)
    left = list(input.shape)
    size = 1
    chosen: list[Sequence[int]] = []
    for item in items:
        num_axes = input.ndim - num_indexed if item is ... else _num_axes(item)
        axes, left = left[: max(0, num_axes)], left[max(0, num_axes) :]
        if isinstance(item, Tensor):
            chosen.append(item.shape if item.dtype != torch.bool else [item.numel()])
        elif isinstance(item, list):
            places: list[int] = item
            chosen.append([len(places)])
        elif item is ... or isinstance(item, slice):
            size *= math.prod(axes)
    return size * math.prod(left) * _broadcast(chosen)


def _num_axes(item: Any) -> int:
    if item is None or item is ...:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def _outer(input: Tensor, vec2: Tensor) -> int:
    return input.numel() * vec2.numel()


def _repeat(input: Tensor, repeats: Sequence[int]) -> int:
    return input.numel() * math.prod(repeats)


def _joined(tensors: Sequence[Tensor], dim: int) -> int:
    return sum(each.numel() for each in tensors)


def _as_first(input: Tensor, *_others: Any) -> int:
    return input.numel()


def _as_second(input: Tensor, other: Tensor) -> int:
    return other.numel()


def _gather(input: Tensor, dim: int, index: Tensor) -> int:
    return index.numel()


def _pair(input: Tensor, *_others: Any) -> int:
    """Values and their places."""
    return 2 * input.numel()


_COUNTS: Mapping[str, Callable[..., int]] = {
    "matmul": _matmul,
    "mv": _matmul,
    "outer": _outer,
    "expand": _expand,
    "expand_as": _as_second,
    "reshape_as": _as_first,
    "type_as": _as_first,
    "repeat": _repeat,
    "cat": _joined,
    "stack": _joined,
    "arange": _arange,
    "index_select": _index_select,
    "gather": _gather,
    "getitem": _getitem,
    "sort": _pair,
    "topk": _pair,
}
