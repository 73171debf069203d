"""The audit log."""

from __future__ import annotations

import builtins
from dataclasses import field
from datetime import datetime
from typing import Any

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp


@dataclass(frozen=True)
class AuditEntry:
    """One change; ``tenant_id`` is None for what belongs to no tenant, such as a worker."""

    at: datetime
    tenant_id: str | None
    event: str
    key_id: str | None = None
    """Of who asked for it; None for what the server did by itself."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])


class Audit:
    """``/admin/v1/audit``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def list(
        self,
        tenant_id: str | None = None,
        *,
        event: str | None = None,
        from_: datetime | None = None,
        before: datetime | None = None,
        limit: int = 100,
    ) -> builtins.list[AuditEntry]:
        """The newest entries that fit, newest first; ``event`` may be the beginning of several."""
        asked = {
            "tenant_id": tenant_id,
            "event": event,
            "from": from_ and from_.astimezone().isoformat(),
            "before": before and before.astimezone().isoformat(),
            "limit": limit,
        }
        query = {name: value for name, value in asked.items() if value is not None}
        return self._http.list(AuditEntry, "entries", query, "audit")
