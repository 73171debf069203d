"""What the cluster consists of: workers and the base models they serve."""

from __future__ import annotations

import builtins
from dataclasses import field
from datetime import datetime
from typing import Any

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp
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


class Workers:
    """``/admin/v1/workers``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def list(self) -> builtins.list[Worker]:
        return self._http.list(Worker, "workers")


class BaseModels:
    """``/admin/v1/base_models``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def list(self) -> builtins.list[BaseModelInfo]:
        return self._http.list(BaseModelInfo, "base_models")
