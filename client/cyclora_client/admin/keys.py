"""API keys."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from datetime import datetime
from typing import Any

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
    project_id: str | None = None
    """The project of all its sessions, of which alone it sees anything; None is no such bound."""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute."""


@dataclass(frozen=True)
class NewKey:
    """A key just created; the server keeps only its hash and cannot show it again."""

    api_key: str
    key_id: str
    tenant_id: str
    name: str
    scopes: list[Scope]
    project_id: str | None = None
    expires_at: datetime | None = None


class ApiKeys:
    """``/admin/v1/keys``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def create(
        self,
        tenant_id: str,
        name: str,
        scopes: Iterable[Scope] = TENANT_SCOPES,
        *,
        project_id: str | None = None,
        expires_at: datetime | None = None,
        lifetime_s: int | None = None,
    ) -> NewKey:
        """A new key, which ends at a time or some seconds from now if one of them is given."""
        body: dict[str, Any] = {"tenant_id": tenant_id, "name": name, "scopes": sorted(scopes)}
        if project_id is not None:
            body["project_id"] = project_id
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        if lifetime_s is not None:
            body["lifetime_s"] = lifetime_s
        return read(NewKey, self._http.call("POST", "keys", body=body))

    def list(self, tenant_id: str | None = None) -> builtins.list[ApiKey]:
        """The keys of one tenant, or of all."""
        return self._http.list(ApiKey, "keys", {"tenant_id": tenant_id} if tenant_id else {})

    def revoke(self, key_id: str) -> None:
        self._http.call("DELETE", f"keys/{part(key_id)}")
