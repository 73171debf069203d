"""Records as JSON bytes and back, checked against their annotations."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


@lru_cache
def _adapter(record_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(record_type)


def check(record_type: type[T], value: Any) -> T:
    """A record of plain values, as ``load`` makes one of JSON.

    Raises:
        ValidationError: a value is not what its annotation says.
    """
    return _adapter(record_type).validate_python(value)


def dump(record: Any) -> bytes:
    return _adapter(type(record)).dump_json(record)


def load(record_type: type[T], data: bytes | str) -> T:
    return _adapter(record_type).validate_json(data)
