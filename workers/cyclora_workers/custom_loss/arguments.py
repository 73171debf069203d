"""Arguments of a custom loss's steps, with what earlier steps gave in place of references."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cyclora_core.custom_loss_arguments import DType, Placement, Ref, Slice, as_items
from cyclora_core.custom_loss_table import Parameter
from cyclora_core.errors import UserError
from cyclora_workers.custom_loss.functions import DTYPES


def resolve(parameter: Parameter, argument: Any, values: Mapping[str, Any], has_refs: bool) -> Any:
    """What the function gets; whatever a reference brought in must be of the parameter's kind.

    Raises:
        UserError: it is not.
    """
    kind = parameter.kind
    value = _resolved(argument, values)
    if isinstance(value, list) and kind != "index":  # where a list and a tuple mean two things
        value = tuple(value)  # pyright: ignore[reportUnknownArgumentType]
    if kind == "shape" and len(value) == 1 and as_items(value[0]) is not None:
        value = tuple(value[0])
    if has_refs and not _KINDS[kind](value):
        raise UserError(f"argument {parameter.name!r} is {described(value)}; expected {kind}")
    return value


def _resolved(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    items = as_items(argument)
    if items is not None:
        found = [_resolved(each, values) for each in items]
        return found if isinstance(argument, list) else tuple(found)
    if isinstance(argument, Slice):
        ends = (argument.start, argument.stop, argument.step)
        return slice(*(_resolved(each, values) for each in ends))
    return DTYPES[argument.name] if isinstance(argument, DType) else argument


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def all_are(value: Any) -> bool:
        items = as_items(value)
        return items is not None and all(check(each) for each in items)

    return all_are


def _is_index(value: Any) -> bool:
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return all(each is None or is_int(each) for each in ends)
    if isinstance(value, list):
        chosen: list[Any] = value
        return all(is_int(each) for each in chosen)
    return value is None or value is ... or is_int(value) or isinstance(value, Tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


_are_ints = _are(is_int)
_are_indices = _are(_is_index)

_KINDS: dict[str, Callable[[Any], bool]] = {
    "tensor": _is_tensor,
    "operand": lambda value: isinstance(value, Tensor | int | float),
    "any": lambda value: isinstance(value, Tensor | tuple),
    "number": _is_number,
    "int": is_int,
    "bool": lambda value: isinstance(value, bool),
    "ints": lambda value: is_int(value) or _are_ints(value),
    "shape": _are_ints,
    "tensors": _are(_is_tensor),
    "index": lambda value: _is_index(value) or _are_indices(value),
    "dtype": lambda value: isinstance(value, torch.dtype),
    "placement": lambda value: isinstance(value, Placement | bool),
    "conversion": _are(
        lambda value: (
            isinstance(value, Tensor | torch.dtype | Placement | bool | str) or value is None
        )
    ),
}


def has_ref(argument: Any) -> bool:
    return next(refs([argument]), None) is not None


def refs(arguments: Sequence[Any]) -> Generator[str, None, None]:
    for each in arguments:
        if isinstance(each, Ref):
            yield each.name
        elif (items := as_items(each)) is not None:
            yield from refs(items)
        elif isinstance(each, Slice):
            yield from refs((each.start, each.stop, each.step))


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, bool | int | float):
        return f"the number {value:.6g}"
    return f"a {type(value).__name__}"
