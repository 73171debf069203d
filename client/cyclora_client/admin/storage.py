"""What takes space: runs, checkpoints, and garbage."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, part, read


@dataclass(frozen=True)
class RunRow:
    """One training run."""

    model_id: str
    tenant_id: str
    project_id: str
    base_model: str
    lora_rank: int
    is_ended: bool
    worker_id: str | None
    created_at: datetime
    last_request_at: datetime
    num_waiting: int
    num_checkpoints: int
    num_bytes: int


@dataclass(frozen=True)
class DeletedRun:
    """What deleting a run has done."""

    num_cancelled: int
    num_checkpoints: int
    is_forgotten: bool
    """Whether its record is gone too, which it is only once its session has ended."""


@dataclass(frozen=True)
class CheckpointRow:
    """One named checkpoint."""

    path: str
    tenant_id: str
    model_id: str
    kind: str
    name: str
    base_model: str
    num_bytes: int
    created_at: datetime
    expires_at: datetime | None
    is_expired: bool
    is_public: bool


@dataclass(frozen=True)
class FoundCheckpoints:
    """A page of checkpoints, and the number and size of all that were found."""

    checkpoints: list[CheckpointRow]
    num: int
    num_bytes: int


@dataclass(frozen=True)
class GarbageRow:
    """One thing that is of no use to anybody."""

    kind: str
    name: str
    tenant_id: str | None
    num_bytes: int


@dataclass(frozen=True)
class GarbageReport:
    """What was found, or freed."""

    is_dry_run: bool
    digest: str
    num: int
    num_bytes: int
    garbage: list[GarbageRow]
    """At most the first 1,000."""


class Runs:
    """``/admin/v1/runs``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def find(self, **query: Any) -> builtins.list[RunRow]:
        """By tenant_id, model_id, base_model, project_id, created_before, is_ended.

        Newest first of each tenant, ``limit`` of them from ``offset`` on.
        """
        return self._http.list(RunRow, "runs", asked(query))

    def delete(self, model_id: str) -> DeletedRun:
        """End a run and delete its checkpoints."""
        return read(DeletedRun, self._http.call("DELETE", f"runs/{part(model_id)}"))


class Checkpoints:
    """``/admin/v1/checkpoints``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def find(self, **query: Any) -> FoundCheckpoints:
        """By tenant_id, model_id, base_model, a part of the name, size, age and state.

        That is ``created_before``, ``created_after``, ``min_bytes``, ``is_expired`` and
        ``is_public``; ``limit`` of them from ``offset`` on.
        """
        return read(FoundCheckpoints, self._http.call("GET", "checkpoints", query=asked(query)))

    def delete(self, path: str) -> None:
        """Delete a checkpoint by its ``tinker://`` path."""
        self._http.call("DELETE", "checkpoints", query={"path": path})


class Garbage:
    """``/admin/v1/garbage``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def collect(
        self, *, dry_run: bool = True, grace_s: int | None = None, digest: str | None = None
    ) -> GarbageReport:
        """Find what nobody needs, and free it unless ``dry_run``.

        With the ``digest`` of a dry run, nothing is freed if there is other garbage by now.
        """
        body: dict[str, Any] = {"dry_run": dry_run}
        body |= {} if grace_s is None else {"grace_s": grace_s}
        body |= {} if digest is None else {"digest": digest}
        return read(GarbageReport, self._http.call("POST", "garbage", body=body))


def asked(query: dict[str, Any]) -> dict[str, Any]:
    """A query without what was not asked for."""
    found = {name: value for name, value in query.items() if value is not None}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in found.items()
    }
