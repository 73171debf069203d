"""Operations of custom losses that lay out, choose, convert or describe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cyclora_core.custom_loss_arguments import Placement
from cyclora_core.errors import UserError
from cyclora_workers.custom_loss.reductions import axes_of

Function = Callable[..., Any]

_MAX_PIECES = 256
_MAX_DIFFERENCES = 8


def reshape_as(input: Tensor, other: Tensor) -> Tensor:
    return input.reshape(other.shape)


def squeeze(input: Tensor, dim: Any) -> Tensor:
    return input.squeeze() if dim is None else input.squeeze(dim)


def transposed_matrix(input: Tensor) -> Tensor:
    return input.transpose(-2, -1)


def expand(input: Tensor, size: Sequence[int]) -> Tensor:
    return input.expand(list(size))


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    return input.expand_as(other)


def repeat(input: Tensor, repeats: Sequence[int]) -> Tensor:
    return input.repeat(list(repeats))


def split(input: Tensor, sizes: Any, dim: int) -> tuple[Tensor, ...]:
    """Pieces of one size, or of the sizes given."""
    (axis,) = axes_of(input, dim)
    if isinstance(sizes, int):
        if sizes < 1:
            raise UserError(f"pieces of {sizes} are not possible; expected at least 1")
        _check_pieces(-(-input.shape[axis] // sizes))
        return tuple(torch.split(input, sizes, dim))
    _check_pieces(len(sizes))
    return tuple(torch.split(input, list(sizes), dim))


def chunk(input: Tensor, chunks: int, dim: int) -> tuple[Tensor, ...]:
    _check_pieces(chunks)
    return tuple(torch.chunk(input, chunks, dim))


def unbind(input: Tensor, dim: int) -> tuple[Tensor, ...]:
    (axis,) = axes_of(input, dim)
    _check_pieces(input.shape[axis])
    return torch.unbind(input, dim)


def _check_pieces(num_pieces: int) -> None:
    if num_pieces > _MAX_PIECES:
        raise UserError(f"it would give {num_pieces} tensors; at most {_MAX_PIECES} are accepted")


def getitem(input: Any, index: Any) -> Any:
    """An element or part of a tensor, or of a tuple such as a shape."""
    if isinstance(input, Tensor):
        items: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
        for each in items:
            if isinstance(each, Tensor) and each.dtype not in (torch.int64, torch.bool):
                raise UserError(f"a tensor of {each.dtype} is no index; expected int64 or bool")
        return input[items]
    if not isinstance(index, int | slice):
        raise UserError("a tuple is indexed by an integer or a slice")
    return input[index]


def roll(input: Tensor, shifts: Any, dims: Any) -> Tensor:
    return torch.roll(input, shifts, () if dims is None else dims)


def diff(input: Tensor, n: int, dim: int) -> Tensor:
    if not 0 <= n <= _MAX_DIFFERENCES:
        raise UserError(f"n is {n}; expected 0 to {_MAX_DIFFERENCES}")
    return torch.diff(input, n, dim)


def like(function: Function) -> Function:
    """``zeros_like`` or ``ones_like``."""

    def run(input: Tensor, dtype: torch.dtype | None, *_placement: Any) -> Tensor:
        return function(input, dtype=dtype)

    return run


def full_like(
    input: Tensor, fill_value: float, dtype: torch.dtype | None, *_placement: Any
) -> Tensor:
    return torch.full_like(input, fill_value, dtype=dtype)


def arange(
    start: float, end: float | None, step: float, dtype: torch.dtype | None, *_placement: Any
) -> Tensor:
    first, last = (0, start) if end is None else (start, end)
    return torch.arange(first, last, step, dtype=dtype)


def to(input: Tensor, args: Sequence[Any], dtype: torch.dtype | None, *_placement: Any) -> Tensor:
    for each in args:
        if isinstance(each, Tensor):
            dtype = each.dtype
        elif isinstance(each, torch.dtype):
            dtype = each
    return input if dtype is None else input.to(dtype)


def as_dtype(dtype: torch.dtype) -> Function:
    """``float``, ``long`` and so on."""

    def run(input: Tensor, memory_format: Any) -> Tensor:
        return input.to(dtype)

    return run


def type_as(input: Tensor, other: Tensor) -> Tensor:
    return input.to(other.dtype)


def cpu(input: Tensor, memory_format: Any) -> Tensor:
    return input


def contiguous(input: Tensor, memory_format: Any) -> Tensor:
    return input.contiguous()


def clone(input: Tensor, memory_format: Any) -> Tensor:
    return input.clone()


def size(input: Tensor, dim: int | None) -> Any:
    return tuple(input.shape) if dim is None else input.shape[dim]


def ndim(input: Tensor) -> int:
    return input.ndim


def dtype_of(input: Tensor) -> torch.dtype:
    return input.dtype


def device_of(input: Tensor) -> Placement:
    return Placement()
