"""Tenants."""

from __future__ import annotations

import builtins
from datetime import datetime

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, read


@dataclass(frozen=True)
class Tenant:
    """One isolated party."""

    tenant_id: str
    name: str
    created_at: datetime


class Tenants:
    """``/admin/v1/tenants``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def create(self, name: str) -> Tenant:
        return read(Tenant, self._http.call("POST", "tenants", body={"name": name}))

    def list(self) -> builtins.list[Tenant]:
        return self._http.list(Tenant, "tenants")
