"""Cycles that run, and the last that ended."""

from __future__ import annotations

import builtins
from datetime import datetime

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp


@dataclass(frozen=True)
class CycleRow:
    """One cycle; what is not known while it runs is None."""

    cycle_id: int
    base_model: str
    worker_id: str
    tenants: list[str]
    num_models: int
    num_operations: int
    num_samples: int
    num_tokens: int | None
    dispatched_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class CycleRows:
    """``/admin/v1/cycles``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def list(
        self, worker_id: str | None = None, base_model: str | None = None, limit: int = 50
    ) -> builtins.list[CycleRow]:
        """Those that run first, then the newest."""
        query: dict[str, str | int] = {"limit": limit}
        query |= {"worker_id": worker_id} if worker_id else {}
        query |= {"base_model": base_model} if base_model else {}
        return self._http.list(CycleRow, "cycles", query)
