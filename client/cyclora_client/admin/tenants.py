"""Tenants."""

from __future__ import annotations

import builtins
from datetime import datetime

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, part, read


@dataclass(frozen=True)
class Tenant:
    """One isolated party."""

    tenant_id: str
    name: str
    created_at: datetime
    weight: float = 1.0
    """Its part of every clock cycle against that of the others who wait."""


class Tenants:
    """``/admin/v1/tenants``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def create(self, name: str) -> Tenant:
        return read(Tenant, self._http.call("POST", "tenants", body={"name": name}))

    def list(self) -> builtins.list[Tenant]:
        return self._http.list(Tenant, "tenants")

    def get(self, tenant_id: str) -> Tenant:
        return read(Tenant, self._http.call("GET", f"tenants/{part(tenant_id)}"))

    def update(
        self, tenant_id: str, *, name: str | None = None, weight: float | None = None
    ) -> Tenant:
        """Change what is given and leave the rest as it is."""
        changes = {"name": name, "weight": weight}
        body = {field: value for field, value in changes.items() if value is not None}
        return read(Tenant, self._http.call("PATCH", f"tenants/{part(tenant_id)}", body=body))
