"""Arguments of a custom loss's calls: decoded from the wire, and bound to parameters.

Pure, and bounded in depth, length and magnitude. References stand for what earlier nodes will give.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cyclora_core.custom_loss_table import DTYPES, Operation, Parameter
from cyclora_core.errors import UserError

MAX_INTEGER = 2**53
"""Bound on the magnitude of integers, written or computed."""

PAGE = "docs/custom-losses.md lists what a custom loss may use"

_MAX_SHOWN = 60
_MAX_DEPTH = 4
_MAX_ITEMS = 256
_DEVICE = re.compile(r"(cpu|cuda)(:[0-9]{1,3})?")
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_LAYOUTS = {
    "layout": frozenset({"strided"}),
    "memory_format": frozenset({"contiguous_format", "preserve_format"}),
}
_WORDS = {
    "reduction": frozenset({"mean", "sum", "none"}),
    "rounding": frozenset({"floor", "trunc"}),
    "approximation": frozenset({"none", "tanh"}),
}


@dataclass(frozen=True, slots=True)
class Ref:
    """What an earlier node gave."""

    name: str


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype by its name, which is one of ``DTYPES``."""

    name: str


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, layout or memory format; it has no effect."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice whose ends may be references."""

    start: Any
    stop: Any
    step: Any


def shown(text: str) -> str:
    """Text of a tenant's inside a message."""
    return repr(text[:_MAX_SHOWN])


def as_items(value: Any) -> Sequence[Any] | None:
    """The items of a list or tuple; None for anything else."""
    return value if isinstance(value, list | tuple) else None


def decode(value: Any, known: Collection[str], depth: int = 0) -> Any:
    """An encoded argument: JSON values, the classes above, lists and tuples of these.

    A dict is for the output alone, which is decoded from depth -1 on.

    Raises:
        UserError: it is malformed or too large, or refers to a node that is not known.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise UserError(f"an integer is beyond the accepted {MAX_INTEGER}")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError('infinities and NaN are written {"float": "inf"}')
        return value
    if isinstance(value, str):
        if len(value) > _MAX_SHOWN:
            raise UserError(f"a string is longer than {_MAX_SHOWN} characters")
        return value
    if depth > _MAX_DEPTH:
        raise UserError(f"an argument is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, list):
        items: list[Any] = value
        if len(items) > _MAX_ITEMS:
            raise UserError(f"a list has {len(items)} entries; at most {_MAX_ITEMS} are accepted")
        return [decode(each, known, depth + 1) for each in items]
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    if len(fields) != 1:
        raise UserError("an argument is neither a JSON value nor an object with one known key")
    ((kind, content),) = fields.items()
    return _decode_object(kind, content, known, depth)


def _decode_object(kind: str, content: Any, known: Collection[str], depth: int) -> Any:
    if isinstance(content, str):
        return _decode_named(kind, content, known)
    if kind == "ellipsis" and content is True:
        return ...
    items: list[Any] = content if isinstance(content, list) else []
    if kind == "slice" and len(items) == 3:
        return Slice(*decode(items, known, depth + 1))
    if kind == "tuple" and isinstance(content, list):
        return tuple(decode(items, known, depth))
    if kind == "dict" and isinstance(content, dict) and depth == 0:
        fields: dict[str, Any] = content
        return {key: decode(each, known, depth + 1) for key, each in fields.items()}
    raise _unknown_form(kind)


def _decode_named(kind: str, name: str, known: Collection[str]) -> Any:
    if kind == "ref":
        if name not in known:
            raise UserError(f"it refers to {shown(name)}, which is no earlier node")
        return Ref(name)
    if kind == "dtype":
        if name not in DTYPES:
            raise UserError(f"dtype {shown(name)} is not one of {', '.join(DTYPES)}")
        return DType(name)
    if kind == "float" and name in _FLOATS:
        return _FLOATS[name]
    if kind == "device" and _DEVICE.fullmatch(name):
        return Placement()
    if name in _LAYOUTS.get(kind, ()):
        return Placement()
    raise _unknown_form(kind)


def _unknown_form(kind: str) -> UserError:
    return UserError(
        f"{shown(kind)} is no known form of argument, or its content is not; expected ref, tuple, "
        "slice, ellipsis, float, dtype, device, layout or memory_format"
    )


def bind(operation: Operation, positional: Sequence[Any], keywords: Mapping[str, Any]) -> list[Any]:
    """One argument per parameter, as Python would assign them.

    Raises:
        UserError: an argument is missing, unknown, given twice, or not of the parameter's kind.
    """
    given: dict[str, Any] = {}
    left = list(positional)
    for parameter in operation.parameters:
        if parameter.is_rest:
            given[parameter.name] = tuple(left)
            left = []
        elif left:
            given[parameter.name] = left.pop(0)
    if left:
        raise UserError(f"it takes at most {len(positional) - len(left)} arguments; {PAGE}")
    for name, value in keywords.items():
        parameter = operation.parameter(name) or _rest_by_keyword(operation, name)
        if parameter is None or given.get(parameter.name, ()) != ():
            accepted = ", ".join(each.name for each in operation.parameters)
            raise UserError(
                f"argument {shown(name)} is unknown or given twice; it takes {accepted}"
            )
        given[parameter.name] = (value,) if parameter.is_rest else value
    arguments: list[Any] = []
    for parameter in operation.parameters:
        if parameter.name not in given and parameter.is_required:
            raise UserError(f"it lacks argument {parameter.name!r}")
        value = given.get(parameter.name, parameter.default)
        if not _fits(parameter, value):
            raise UserError(
                f"argument {parameter.name!r} is {_described(value)}; expected {parameter.kind}"
            )
        arguments.append(value)
    return arguments


def _rest_by_keyword(operation: Operation, name: str) -> Parameter | None:
    """``x.permute(dims=(1, 0))``: what takes the rest may be named instead."""
    return next((p for p in operation.parameters if p.is_rest and p.name == name), None)


def _fits(parameter: Parameter, value: Any) -> bool:
    """Whether a written argument can be what the parameter takes; references are judged later."""
    kind = parameter.kind
    if parameter.is_rest and kind == "conversion":
        return len(value) <= 4 and all(_fits_conversion(each) for each in value)
    if parameter.is_rest:
        items = as_items(value[0]) if len(value) == 1 else as_items(value)
        if items is None:
            return _is("int", value[0])
        return all(_is("int", each) for each in items) and len(value) > 0
    if value is None:
        is_default = parameter.default is None and not parameter.is_required
        return is_default or kind == "index"
    return _is(kind, value)


def _fits_conversion(value: Any) -> bool:
    return isinstance(value, Ref | DType) or _is("placement", value)


def _is(kind: str, value: Any) -> bool:
    if kind in _WORDS:
        return isinstance(value, str) and value in _WORDS[kind]
    match kind:
        case "absent":
            return value is None
        case "off":
            return value is False
        case "order":
            return value in ("fro", 1, 2, math.inf) and not isinstance(value, bool)
        case "index":
            parts: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
            return all(_is_index(each) for each in parts)
        case "placement":
            is_device = isinstance(value, str) and _DEVICE.fullmatch(value) is not None
            return is_device or value is None or isinstance(value, Placement | bool | Ref)
        case _ if isinstance(value, Ref):
            return True
        case "bool":
            return isinstance(value, bool)
        case "int" | "number" | "operand" if isinstance(value, bool):
            return kind == "operand"
        case "int":
            return isinstance(value, int)
        case "number" | "operand":
            return isinstance(value, int | float)
        case "ints":
            items = as_items(value)
            return _is("int", value) if items is None else all(_is("int", each) for each in items)
        case "tensors":
            return _are("tensor", as_items(value))
        case "dtype":
            return isinstance(value, DType)
        case _:
            return False


def _is_index(value: Any) -> bool:
    if isinstance(value, Slice):
        ends = (value.start, value.stop, value.step)
        return all(each is None or _is("int", each) for each in ends)
    if isinstance(value, list):
        chosen: list[Any] = value
        return _are("int", chosen)
    return value is None or value is ... or _is("int", value)


def _are(kind: str, items: Sequence[Any] | None) -> bool:
    return bool(items) and all(_is(kind, each) for each in items or ())


def _described(value: Any) -> str:
    if isinstance(value, Ref):
        return f"node {shown(value.name)}"
    items = as_items(value)
    if items is not None:
        return f"a list of {len(items)}"
    return str(value)[:_MAX_SHOWN]
