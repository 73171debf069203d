"""API keys."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from datetime import datetime

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, part, read
from cyclora_core.accounts import TENANT_SCOPES, Scope


@dataclass(frozen=True)
class ApiKey:
    """What is known of an API key; never the key itself."""

    key_id: str
    tenant_id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True)
class NewKey:
    """A key just created; the server keeps only its hash and cannot show it again."""

    api_key: str
    key_id: str
    tenant_id: str
    name: str
    scopes: list[Scope]


class ApiKeys:
    """``/admin/v1/keys``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def create(self, tenant_id: str, name: str, scopes: Iterable[Scope] = TENANT_SCOPES) -> NewKey:
        body = {"tenant_id": tenant_id, "name": name, "scopes": sorted(scopes)}
        return read(NewKey, self._http.call("POST", "keys", body=body))

    def list(self, tenant_id: str | None = None) -> builtins.list[ApiKey]:
        """The keys of one tenant, or of all."""
        return self._http.list(ApiKey, "keys", {"tenant_id": tenant_id} if tenant_id else {})

    def revoke(self, key_id: str) -> None:
        self._http.call("DELETE", f"keys/{part(key_id)}")
