"""Models that have not ended, and where their states are."""

from __future__ import annotations

import builtins

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, part


@dataclass(frozen=True)
class Model:
    """A model and the place of its state: ``device``, ``host`` or ``storage``."""

    model_id: str
    tenant_id: str
    base_model: str
    lora_rank: int
    worker_id: str | None
    """None: no worker has it, and its next operation may load it anywhere."""
    place: str
    num_bytes: int
    """Of worker memory that it takes."""
    applied_seq_id: int
    num_waiting: int
    """Operations that have not run."""
    wish: str | None = None
    """What an administrator asked for and has not happened yet."""
    note: str | None = None
    """Why the last wish was not fulfilled."""


class Models:
    """``/admin/v1/models``: acts are noted at once, and happen in the next cycles."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def list(
        self, *, worker_id: str | None = None, tenant_id: str | None = None
    ) -> builtins.list[Model]:
        """Those that matter to workers now; of a tenant all that have not ended."""
        wanted = {"worker_id": worker_id, "tenant_id": tenant_id}
        query = {name: value for name, value in wanted.items() if value is not None}
        return self._http.list(Model, "models", query)

    def load(self, model_id: str) -> None:
        """Have it in memory before its next operation."""
        self._http.call("POST", f"models/{part(model_id)}/load")

    def unload(self, model_id: str) -> None:
        """Bring it to storage; it does not end."""
        self._http.call("POST", f"models/{part(model_id)}/unload")

    def move(self, model_id: str, worker_id: str) -> None:
        """Bring it to another worker of the same base model."""
        self._http.call("POST", f"models/{part(model_id)}/move", body={"worker_id": worker_id})
