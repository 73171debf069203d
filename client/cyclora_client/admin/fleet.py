"""What the cluster consists of: workers and the base models they serve."""

from __future__ import annotations

import builtins
from dataclasses import field
from datetime import datetime
from typing import Any

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, part
from cyclora_core.types import BaseModelInfo


@dataclass(frozen=True)
class Worker:
    """One worker and the cycle it executes; ``cycle_id`` is None while it is free."""

    worker_id: str
    base_model: str
    registered_at: datetime
    is_alive: bool
    cycle_id: int | None = None
    info: dict[str, Any] = field(default_factory=dict[str, Any])
    is_draining: bool = False
    """Whether it gets nothing new and gives up what it has."""
    is_drained: bool = False
    """Whether it has nothing left: it may be stopped without loss."""
    num_models: int = 0
    num_samples: int = 0


class Workers:
    """``/admin/v1/workers``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def list(self) -> builtins.list[Worker]:
        return self._http.list(Worker, "workers")

    def drain(self, worker_id: str) -> None:
        """Have it give up its models and take nothing new; ``is_drained`` says when it is done."""
        self._http.call("POST", f"workers/{part(worker_id)}/drain")

    def resume(self, worker_id: str) -> None:
        self._http.call("POST", f"workers/{part(worker_id)}/resume")


class BaseModels:
    """``/admin/v1/base_models``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def list(self) -> builtins.list[BaseModelInfo]:
        return self._http.list(BaseModelInfo, "base_models")
