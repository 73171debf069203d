"""Reading JSON into typed requests, tolerantly.

Unknown fields are ignored, null means absent, and text is made of metadata that is not: all of it
because several years of SDK versions are to work against one server.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

import pydantic_core
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)

from cyclora_server.problems import InvalidBody, describe_violations
from cyclora_server.wire.bounds import check_json

MAX_METADATA_CHARS = 64 * 1024
"""Of all names and values of one object's metadata: every list that shows the object holds them."""


class Body(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read_nulls(cls, value: Any) -> Any:
        """Null means absent, unless a request knows better."""
        if not isinstance(value, dict):
            return value
        fields: dict[str, Any] = value
        return {name: item for name, item in fields.items() if item is not None}


BodyT = TypeVar("BodyT", bound=Body)


def parse(model: type[BodyT], value: Any) -> BodyT:
    """Read a decoded JSON value as a request.

    Raises:
        InvalidBody: a field is missing or of the wrong type.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidBody(describe_violations(error.errors(include_url=False))) from None


def _stringified(value: Any) -> Any:
    """Metadata as the responses need it: one value that is no string breaks a whole listing."""
    if not isinstance(value, dict):
        return value
    items: dict[Any, Any] = value
    return {
        str(name): item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
        for name, item in items.items()
    }


def _bounded(metadata: dict[str, str]) -> dict[str, str]:
    num_chars = sum(len(name) + len(text) for name, text in metadata.items())
    if num_chars > MAX_METADATA_CHARS:
        raise ValueError(f"has {num_chars} characters; at most {MAX_METADATA_CHARS} are kept")
    return metadata


Metadata = Annotated[dict[str, str], BeforeValidator(_stringified), AfterValidator(_bounded)]


def read_json(raw: bytes) -> Any:
    """Parse a JSON body.

    Raises:
        InvalidBody: it is not JSON.
        PayloadTooLarge: it has too many elements.
    """
    check_json(raw)
    try:
        # Values are tenants' strings: they do not belong into a cache of the process.
        return pydantic_core.from_json(raw, cache_strings="keys")
    except ValueError as error:
        raise InvalidBody(f"the body is not JSON: {error}") from None
