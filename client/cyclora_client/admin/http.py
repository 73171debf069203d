"""Requests to ``/admin/v1``, and their answers as records or errors."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from cyclora_core.errors import (
    CycloraError,
    Forbidden,
    NotFound,
    ServerError,
    Unauthorized,
    Unavailable,
    UserError,
)

_TIMEOUT_S = 30.0

T = TypeVar("T")


class AdminHttp:
    """What all parts of ``AdminClient`` call through."""

    def __init__(
        self,
        base_url: str,
        admin_key: str,
        transport: httpx.BaseTransport | None,
        prefix: str = "/admin/v1",
    ) -> None:
        self._prefix = prefix
        self._client = httpx.Client(
            base_url=base_url.rstrip("/"),
            headers={"X-API-Key": admin_key},
            timeout=_TIMEOUT_S,
            transport=transport,
        )

    def close(self) -> None:
        self._client.close()

    def list(
        self,
        kind: type[T],
        name: str,
        query: dict[str, Any] | None = None,
        route: str | None = None,
    ) -> list[T]:
        """The rows under ``name`` in the answer of a route, by default the one of that name."""
        answer = self.call("GET", route or name, query=query)
        rows = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise ServerError(f"expected a list of {name}, the server sent {str(answer)[:200]}")
        return [read(kind, row) for row in rows]

    def call(
        self,
        method: str,
        route: str,
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, Any] | None = None,
    ) -> Any:
        """The decoded answer of one route; ``route`` without the prefix."""
        try:
            response = self._client.request(
                method, f"{self._prefix}/{route}", json=body, params=query
            )
        except httpx.HTTPError as error:
            raise Unavailable(f"no answer from {self._client.base_url}: {error}") from error
        if response.is_success:
            return _json(response)
        raise _error(response)


def part(identifier: str) -> str:
    """An identifier as one part of a route, whatever it contains."""
    return quote(identifier, safe="")


def read(kind: type[T], row: Any) -> T:
    """Check a row of an answer; fields that this client does not know are ignored."""
    try:
        return TypeAdapter(kind).validate_python(row)
    except ValidationError as error:
        raise ServerError(
            f"the server sent something that is no {kind.__name__}: {error}"
        ) from error


def _json(response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise ServerError(f"the server sent no JSON: {response.text[:200]!r}") from error


def _error(response: httpx.Response) -> CycloraError:
    status = response.status_code
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200]
    message = f"{detail} (status {status})"
    kinds = {401: Unauthorized, 403: Forbidden, 404: NotFound, 429: Unavailable, 503: Unavailable}
    if status in kinds:
        return kinds[status](message)
    return ServerError(message) if status >= 500 else UserError(message)
