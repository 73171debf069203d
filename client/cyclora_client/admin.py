"""Administration of a running server: tenants, API keys, workers."""

from __future__ import annotations

from dataclasses import field
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cyclora_core.errors import (
    CycloraError,
    Forbidden,
    NotFound,
    ServerError,
    Unauthorized,
    Unavailable,
    UserError,
)
from cyclora_core.types import BaseModelInfo

_TIMEOUT_S = 30.0

T = TypeVar("T")


@dataclass(frozen=True)
class Tenant:
    """One isolated party."""

    tenant_id: str
    name: str
    created_at: datetime


@dataclass(frozen=True)
class ApiKey:
    """What is known of an API key; never the key itself."""

    key_id: str
    tenant_id: str
    name: str
    is_admin: bool
    created_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True)
class NewKey:
    """A key just created; the server keeps only its hash and cannot show it again."""

    api_key: str
    key_id: str
    tenant_id: str
    name: str
    is_admin: bool


@dataclass(frozen=True)
class Worker:
    """One worker and the cycle it executes; ``cycle_id`` is None while it is free."""

    worker_id: str
    base_model: str
    registered_at: datetime
    is_alive: bool
    cycle_id: int | None = None
    info: dict[str, Any] = field(default_factory=dict[str, Any])


class AdminClient:
    """Calls below ``/admin/v1`` with an admin key.

    Every method raises a class of ``cyclora_core.errors``: ``Unauthorized`` for an unknown key,
    ``Forbidden`` for one that is not an admin key, ``NotFound``, ``UserError`` for anything else
    that was wrong with the request, ``Unavailable`` when no answer came or the server is busy,
    and ``ServerError`` when it failed.
    """

    def __init__(
        self, base_url: str, admin_key: str, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._client = httpx.Client(
            base_url=base_url.rstrip("/"),
            headers={"X-API-Key": admin_key},
            timeout=_TIMEOUT_S,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def create_tenant(self, name: str) -> Tenant:
        return _read(Tenant, self._call("POST", "tenants", body={"name": name}))

    def list_tenants(self) -> list[Tenant]:
        return self._list(Tenant, "tenants")

    def create_key(self, tenant_id: str, name: str, is_admin: bool = False) -> NewKey:
        body = {"tenant_id": tenant_id, "name": name, "is_admin": is_admin}
        return _read(NewKey, self._call("POST", "keys", body=body))

    def list_keys(self, tenant_id: str | None = None) -> list[ApiKey]:
        """The keys of one tenant, or of all."""
        return self._list(ApiKey, "keys", {"tenant_id": tenant_id} if tenant_id else {})

    def revoke_key(self, key_id: str) -> None:
        self._call("DELETE", f"keys/{quote(key_id, safe='')}")

    def list_workers(self) -> list[Worker]:
        return self._list(Worker, "workers")

    def list_base_models(self) -> list[BaseModelInfo]:
        return self._list(BaseModelInfo, "base_models")

    def _list(self, kind: type[T], name: str, query: dict[str, str] | None = None) -> list[T]:
        answer = self._call("GET", name, query=query)
        rows = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise ServerError(f"expected a list of {name}, the server sent {str(answer)[:200]}")
        return [_read(kind, row) for row in rows]

    def _call(
        self,
        method: str,
        route: str,
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
    ) -> Any:
        try:
            response = self._client.request(method, f"/admin/v1/{route}", json=body, params=query)
        except httpx.HTTPError as error:
            raise Unavailable(f"no answer from {self._client.base_url}: {error}") from error
        if response.is_success:
            return _json(response)
        raise _error(response)


def _read(kind: type[T], row: Any) -> T:
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
