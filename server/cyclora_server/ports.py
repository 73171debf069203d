"""What the server needs of the store and of storage, as narrow protocols.

``cyclora_core.store.Store`` and ``cyclora_core.storage.Storage`` fit them. Stating them here shows
how little of the store the HTTP side may touch: it reads, submits and waits, and never dispatches,
claims or settles.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cyclora_core.ids import CheckpointPath
from cyclora_core.records import (
    ApiKey,
    Checkpoint,
    Completion,
    Future,
    SamplingSession,
    Session,
    Submission,
    SubmitOutcome,
    Tenant,
    WorkerStatus,
)
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.store.memory import MemoryReading
from cyclora_core.types import BaseModelInfo, ModelRecord


class TenantsPort(Protocol):
    """Tenants and their API keys."""

    async def create(self, name: str, /) -> Tenant: ...
    async def get(self, tenant_id: str, /) -> Tenant | None: ...
    async def list(self) -> list[Tenant]: ...
    async def create_key(
        self, tenant_id: str, name: str, is_admin: bool, /
    ) -> tuple[str, ApiKey]: ...
    async def list_keys(self, tenant_id: str | None, /) -> list[ApiKey]: ...
    async def revoke_key(self, key_id: str, /) -> bool: ...
    async def authenticate(self, api_key: str, /) -> ApiKey | None: ...


class SessionsPort(Protocol):
    """Connected client processes."""

    async def create(self, session: Session, idempotency_key: str | None, /) -> Session: ...
    async def get(self, session_id: str, /) -> Session | None: ...
    async def heartbeat(self, session_id: str, /) -> None: ...
    async def finish(self, session_id: str, reason: str, /) -> None: ...
    async def list(self, tenant_id: str, offset: int, limit: int, /) -> list[Session]: ...


class SamplingPort(Protocol):
    """Sampling sessions."""

    async def create(self, record: SamplingSession, /) -> SamplingSession: ...
    async def get(self, sampling_session_id: str, /) -> SamplingSession | None: ...
    async def join(self, sampling_session_id: str, /) -> int: ...
    async def of_session(self, session_id: str, /) -> list[str]: ...


class ModelsPort(Protocol):
    """Tenants' adapters."""

    async def get(self, model_id: str, /) -> ModelRecord | None: ...
    async def of_session(self, session_id: str, /) -> list[str]: ...


class RunsPort(Protocol):
    """Models as the training runs that users list."""

    async def list(
        self, tenant_id: str, offset: int, limit: int, /
    ) -> tuple[list[ModelRecord], int]: ...
    async def list_of_project(
        self, tenant_id: str, project_id: str, offset: int, limit: int, /
    ) -> tuple[list[ModelRecord], int]: ...
    async def list_accessible(
        self, tenant_id: str, offset: int, limit: int, /
    ) -> tuple[list[ModelRecord], int]: ...


class OperationsPort(Protocol):
    """The way into the command logs and sample queues."""

    async def submit(self, submission: Submission, /) -> SubmitOutcome: ...


class FuturesPort(Protocol):
    """Promises and how their end is announced."""

    async def get(self, request_id: str, /) -> Future | None: ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Request ids as they become final; "" whenever announcements may have been missed."""
        ...

    async def completions(
        self, sampling_session_id: str, clone_id: int, prev_cursor: int, /
    ) -> list[Completion]: ...

    async def fetched(self, request_id: str, /) -> None: ...

    async def acknowledge(self, request_ids: Sequence[str], /) -> None: ...


class CheckpointsPort(Protocol):
    """Records of checkpoints; the lists hold only those a tenant named."""

    async def get(self, path: str, /) -> Checkpoint | None: ...
    async def of_model(self, model_id: str, /) -> list[Checkpoint]: ...
    async def of_models(self, model_ids: Sequence[str], /) -> list[list[Checkpoint]]: ...
    async def unlisted_of_model(self, model_id: str, /) -> list[str]: ...
    async def list(
        self, tenant_id: str, offset: int, limit: int, /, *, with_external: bool = True
    ) -> tuple[list[Checkpoint], int]: ...
    async def set_expiry(self, path: str, expires_at_ms: int | None, /) -> bool: ...
    async def set_public(self, path: str, is_public: bool, /) -> bool: ...
    async def delete(self, path: str, /) -> CheckpointFiles | None: ...
    async def drop_expired(self) -> int: ...
    async def doomed_files(self, limit: int, /) -> list[CheckpointFiles]: ...
    async def doom_files(self, files: CheckpointFiles, after_s: float, /) -> None: ...
    async def files_deleted(self, files: CheckpointFiles, /) -> None: ...


class CopiesPort(Protocol):
    """Copied checkpoints."""

    async def record(
        self, copy: Checkpoint, copied_from: str, project_id: str | None, /
    ) -> bool: ...


class BaseModelsPort(Protocol):
    """What workers said about the base models they serve."""

    async def get(self, name: str, /) -> BaseModelInfo | None: ...
    async def list(self) -> list[BaseModelInfo]: ...


class WorkersPort(Protocol):
    """Workers as administrators see them."""

    async def list(self) -> list[WorkerStatus]: ...


class GapsPort(Protocol):
    """Accepted requests that wait for an earlier one to arrive."""

    async def is_awaited(self, model_id: str, seq_id: int, /) -> bool: ...


class MemoryPort(Protocol):
    """How full the store is."""

    async def read(self) -> MemoryReading: ...


class StorePort(Protocol):
    """The parts of the store that the server uses."""

    @property
    def tenants(self) -> TenantsPort: ...
    @property
    def sessions(self) -> SessionsPort: ...
    @property
    def sampling(self) -> SamplingPort: ...
    @property
    def models(self) -> ModelsPort: ...
    @property
    def runs(self) -> RunsPort: ...
    @property
    def operations(self) -> OperationsPort: ...
    @property
    def futures(self) -> FuturesPort: ...
    @property
    def checkpoints(self) -> CheckpointsPort: ...
    @property
    def copies(self) -> CopiesPort: ...
    @property
    def base_models(self) -> BaseModelsPort: ...
    @property
    def workers(self) -> WorkersPort: ...
    @property
    def gaps(self) -> GapsPort: ...
    @property
    def memory(self) -> MemoryPort: ...


class StoragePort(Protocol):
    """The files that the server hands out or deletes; all calls block."""

    def tokenizer_file(self, base_model: str, name: str, /) -> bytes: ...
    def delete_revision(self, path: CheckpointPath, revision: str, /) -> bool: ...
    def copy_revision(
        self,
        source: CheckpointPath,
        source_revision: str,
        target: CheckpointPath,
        target_revision: str,
        /,
    ) -> None: ...
