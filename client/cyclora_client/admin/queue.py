"""What waits, and ending it."""

from __future__ import annotations

import builtins
from datetime import datetime

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, read


@dataclass(frozen=True)
class QueueLength:
    """All that has not settled of one tenant for one base model."""

    tenant_id: str
    base_model: str
    num_models: int
    num_operations: int
    num_samples: int
    num_tokens: int
    num_running: int
    oldest_s: float
    """How long the one has waited that has waited longest."""


@dataclass(frozen=True)
class WaitingOperation:
    """One operation that has not settled; its contents are never shown."""

    request_id: str
    state: str
    """``queued``, ``running``, or ``held`` behind a request that has not arrived."""
    kind: str
    tenant_id: str
    owner_id: str
    seq_id: int
    base_model: str
    num_tokens: int
    submitted_at: datetime


@dataclass(frozen=True)
class Cancelled:
    """How many operations ended."""

    num_cancelled: int


class Queue:
    """``/admin/v1/queue``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def lengths(self) -> builtins.list[QueueLength]:
        """By tenant and base model, most tokens first."""
        return self._http.list(QueueLength, "queue")

    def list(
        self,
        tenant_id: str | None = None,
        model_id: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> builtins.list[WaitingOperation]:
        """A page of what waits, the one that has waited longest first."""
        query: dict[str, str | int] = {"limit": limit, "offset": offset}
        query |= {"tenant_id": tenant_id} if tenant_id else {}
        query |= {"model_id": model_id} if model_id else {}
        answer = self._http.call("GET", "queue/operations", query=query)
        return [read(WaitingOperation, row) for row in answer["operations"]]

    def cancel(
        self,
        *,
        tenant_id: str | None = None,
        model_id: str | None = None,
        request_id: str | None = None,
    ) -> int:
        """End what waits of exactly one of these; returns how many operations."""
        named = {"tenant_id": tenant_id, "model_id": model_id, "request_id": request_id}
        body = {name: value for name, value in named.items() if value is not None}
        return read(Cancelled, self._http.call("POST", "queue/cancel", body=body)).num_cancelled
