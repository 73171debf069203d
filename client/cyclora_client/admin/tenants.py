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
    is_enabled: bool = True
    disabled_reason: str = ""


@dataclass(frozen=True)
class Project:
    """What is in one project of a tenant."""

    project_id: str
    num_sessions: int
    num_training_runs: int
    num_checkpoints: int
    stored_bytes: int


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
        self,
        tenant_id: str,
        *,
        name: str | None = None,
        weight: float | None = None,
        is_enabled: bool | None = None,
        disabled_reason: str | None = None,
    ) -> Tenant:
        """Change what is given and leave the rest as it is."""
        changes = {
            "name": name,
            "weight": weight,
            "is_enabled": is_enabled,
            "disabled_reason": disabled_reason,
        }
        body = {field: value for field, value in changes.items() if value is not None}
        return read(Tenant, self._http.call("PATCH", f"tenants/{part(tenant_id)}", body=body))

    def delete(self, tenant_id: str, *, force: bool = False) -> None:
        """Delete a tenant with all that it has; its usage and audit log stay.

        Raises:
            UserError: it has live sessions, and ``force`` is not set.
        """
        query = {"force": "true"} if force else {}
        self._http.call("DELETE", f"tenants/{part(tenant_id)}", query=query)

    def projects(self, tenant_id: str) -> builtins.list[Project]:
        """A tenant's projects, by name."""
        return self._http.list(Project, "projects", route=f"tenants/{part(tenant_id)}/projects")
