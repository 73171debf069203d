"""Records as JSON bytes and back, checked against their annotations."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


@lru_cache
def _adapter(record_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(record_type)


def dump(record: Any) -> bytes:
    return _adapter(type(record)).dump_json(record)


def load(record_type: type[T], data: bytes | str) -> T:
    return _adapter(record_type).validate_json(data)
