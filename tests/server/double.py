"""The store's interface in plain Python, for route tests; and builders of what they send.

It keeps what the server hands over and announces what a test settles. Ordering, leases and
atomicity are the real store's and are tested against a real Valkey.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cyclora_core import ids, payload
from cyclora_core.clock import ManualClock
from cyclora_core.custom_loss import CustomLoss
from cyclora_core.errors import ErrorCategory, NotFound
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import CustomLossResult, LoraConfig, OperationKind, Result
from cyclora_core.partials import PartialToken, Progress
from cyclora_core.peft import ModuleGroup, TargetModule
from cyclora_core.records import (
    DEFAULT_PROJECT,
    EXPIRED,
    ApiKey,
    AuditEntry,
    Checkpoint,
    Completion,
    Future,
    FutureState,
    OperationError,
    SamplingSession,
    Session,
    Submission,
    SubmitOutcome,
    Tenant,
    WorkerStatus,
)
from cyclora_core.storage import StoredFile
from cyclora_core.store.cancellations import CancelOutcome
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.store.custom_losses import CreateLossOutcome
from cyclora_core.store.memory import MemoryReading
from cyclora_core.store.metering import Metered, StoredHour
from cyclora_core.store.traces import TracedOperation
from cyclora_core.types import BaseModelInfo, ModelRecord

TENANT = "tenant-a"
STRANGER = "tenant-b"
KEY = "tml-key-of-a"
STRANGER_KEY = "tml-key-of-b"
ADMIN_KEY = "tml-key-of-admin"
BASE = BaseModelInfo(
    name="org/tiny",
    vocab_size=100,
    max_context_length=32,
    eos_token_ids=(0,),
    architecture="tiny",
    num_parameters=1000,
    max_lora_rank=64,
    tokenizer_path="/models/org/tiny",
    tokenizer_files=("tokenizer.json",),
)
MODULES = [
    TargetModule("model.layers.0.self_attn.q_proj", 4, 6, ModuleGroup.ATTN),
    TargetModule("model.layers.0.self_attn.v_proj", 4, 4, ModuleGroup.ATTN),
    TargetModule("model.layers.0.mlp.up_proj", 4, 8, ModuleGroup.MLP),
    TargetModule("lm_head", 4, 100, ModuleGroup.UNEMBED),
]
SESSION = "00000000-0000-4000-8000-000000000001"
MODEL = ids.model_id(SESSION, 0)
SAMPLER = ids.sampling_session_id(SESSION, 0)
_MIB = 1024 * 1024


class Tenants:
    def __init__(self) -> None:
        self.tenants = {name: Tenant(name, name.upper(), 1000) for name in (TENANT, STRANGER)}
        self.keys = {
            KEY: ApiKey("key-a", TENANT, "laptop", False, 1000),
            STRANGER_KEY: ApiKey("key-b", STRANGER, "", False, 1000),
            ADMIN_KEY: ApiKey("key-admin", TENANT, "", True, 1000),
        }

    async def create(self, name: str, by: str = "") -> Tenant:
        assert by
        tenant = Tenant(f"tenant-{name}", name, 1000)
        self.tenants[tenant.tenant_id] = tenant
        return tenant

    async def get(self, tenant_id: str) -> Tenant | None:
        return self.tenants.get(tenant_id)

    async def list(self) -> list[Tenant]:
        return list(self.tenants.values())

    async def create_key(
        self, tenant_id: str, name: str, is_admin: bool, by: str
    ) -> tuple[str, ApiKey]:
        assert by
        if tenant_id not in self.tenants:
            raise NotFound(f"tenant {tenant_id!r} does not exist")
        secret = f"tml-{len(self.keys)}"
        self.keys[secret] = ApiKey(f"key-{len(self.keys)}", tenant_id, name, is_admin, 1000)
        return secret, self.keys[secret]

    async def list_keys(self, tenant_id: str | None) -> list[ApiKey]:
        return [key for key in self.keys.values() if tenant_id in (None, key.tenant_id)]

    async def get_key(self, key_id: str) -> ApiKey | None:
        return next((key for key in self.keys.values() if key.key_id == key_id), None)

    async def revoke_key(self, key_id: str, by: str = "") -> bool:
        for secret, key in self.keys.items():
            if key.key_id == key_id:
                self.keys[secret] = dataclasses.replace(key, revoked_at_ms=2000)
                return True
        return False

    async def authenticate(self, api_key: str) -> ApiKey | None:
        key = self.keys.get(api_key)
        return key if key and key.revoked_at_ms is None else None


class Audit:
    def __init__(self) -> None:
        self.entries: list[tuple[str, AuditEntry]] = []

    async def list(self, tenant_id: str, from_ms: int, before_ms: int) -> list[AuditEntry]:
        found = [each for owner, each in self.entries if owner == tenant_id]
        return [each for each in found if from_ms <= each.at_ms < before_ms]


class Metering:
    def __init__(self) -> None:
        self.metered: list[Metered] = []
        self.stored_hours: list[StoredHour] = []

    async def used(self, tenant_id: str, from_hour: int, before_hour: int) -> list[Metered]:
        if tenant_id != TENANT:
            return []
        return [each for each in self.metered if from_hour <= each.hour < before_hour]

    async def stored(
        self, tenant_id: str, from_hour: int, before_hour: int, now_ms: int
    ) -> list[StoredHour]:
        assert now_ms > 0
        if tenant_id != TENANT:
            return []
        return [each for each in self.stored_hours if from_hour <= each.hour < before_hour]


class Traces:
    def __init__(self) -> None:
        self.operations: list[TracedOperation] = []
        self.queued: list[TracedOperation] = []

    async def settled(self, session_id: str) -> list[TracedOperation]:
        return [each for each in self.operations if each.request_id.startswith(session_id)]

    async def waiting(self, model_ids: Sequence[str], limit: int) -> list[TracedOperation]:
        assert model_ids
        return self.queued[:limit]


class Secrets:
    async def shared(self, name: str) -> bytes:
        return f"shared {name}".ljust(32, ".").encode()


class Sessions:
    def __init__(self) -> None:
        self.records = {SESSION: Session(SESSION, TENANT, 1000, 1000)}
        self.by_idempotency_key: dict[str, str] = {}
        self.heartbeats: list[str] = []
        self.to_clean_up: list[str] = []
        self.busy: set[str] = set()

    async def create(self, session: Session, idempotency_key: str | None) -> Session:
        session_id = session.session_id
        if idempotency_key:
            session_id = self.by_idempotency_key.setdefault(idempotency_key, session_id)
        return self.records.setdefault(session_id, session)

    async def get(self, session_id: str) -> Session | None:
        return self.records.get(session_id)

    async def get_many(self, session_ids: Sequence[str]) -> dict[str, Session]:
        return {each: self.records[each] for each in session_ids if each in self.records}

    async def heartbeat(self, session_id: str) -> None:
        self.heartbeats.append(session_id)

    async def finish(self, session_id: str, reason: str, detail: str | None = None) -> bool:
        record = self.records[session_id]
        if record.finished_reason is not None:
            return False
        self.records[session_id] = dataclasses.replace(
            record, finished_reason=reason, finished_detail=detail
        )
        self.to_clean_up.append(session_id)
        return True

    async def live(self) -> dict[str, int]:
        records = self.records.values()
        return {each.session_id: 1000 for each in records if each.finished_reason is None}

    async def expire(self, session_id: str, last_sign_ms: int, detail: str) -> bool:
        assert last_sign_ms == 1000
        return session_id not in self.busy and await self.finish(session_id, EXPIRED, detail)

    async def ending(self, for_s: float, limit: int) -> list[str]:
        assert for_s > 0
        return self.to_clean_up[:limit]

    async def postpone(self, session_id: str) -> None:
        self.to_clean_up.remove(session_id)
        self.to_clean_up.append(session_id)

    async def cleaned_up(self, session_id: str) -> None:
        if session_id in self.to_clean_up:
            self.to_clean_up.remove(session_id)

    async def assign_project(self, session: Session, project_id: str, by: str) -> None:
        assert by
        self.records[session.session_id] = dataclasses.replace(session, project_id=project_id)

    async def list(self, tenant_id: str, offset: int, limit: int) -> list[Session]:
        return self._newest_first(tenant_id)[offset : offset + limit]

    async def older_than(
        self, tenant_id: str, created_at_ms: int, session_id: str, limit: int
    ) -> list[Session]:
        before = (created_at_ms, session_id)
        found = self._newest_first(tenant_id)
        return [each for each in found if (each.created_at_ms, each.session_id) < before][:limit]

    def _newest_first(self, tenant_id: str) -> list[Session]:
        found = [each for each in self.records.values() if each.tenant_id == tenant_id]
        return sorted(found, key=lambda each: (each.created_at_ms, each.session_id))[::-1]


class Sampling:
    def __init__(self) -> None:
        session = SamplingSession(SAMPLER, TENANT, SESSION, BASE.name, None, None, 1000)
        self.records = {SAMPLER: session}
        self.num_clones = 0
        self.next_seq_id = 1000

    async def create(self, record: SamplingSession) -> SamplingSession:
        return self.records.setdefault(record.sampling_session_id, record)

    async def number(self, record: SamplingSession, count: int, kept_s: int) -> int:
        self.records.setdefault(record.sampling_session_id, record)
        self.next_seq_id += count
        return self.next_seq_id - count

    async def get(self, sampling_session_id: str) -> SamplingSession | None:
        return self.records.get(sampling_session_id)

    async def join(self, sampling_session_id: str) -> int:
        assert sampling_session_id in self.records
        self.num_clones += 1
        return self.num_clones

    async def of_session(self, session_id: str) -> list[str]:
        return [key for key, each in self.records.items() if each.session_id == session_id]


class CustomLosses:
    def __init__(self, sessions: Sessions, futures: Futures) -> None:
        self.records: dict[str, CustomLoss] = {}
        self.outcome: CreateLossOutcome | None = None
        """What the next creation comes to, if not what the records say."""
        self._sessions = sessions
        self._futures = futures

    async def create(
        self, tenant_id: str, session_id: str, custom_loss_seq_id: int, loss: CustomLoss
    ) -> CreateLossOutcome:
        if self.outcome is not None:
            return self.outcome
        loss_id = ids.loss_id(session_id, custom_loss_seq_id)
        if loss_id in self.records:
            is_same = self.records[loss_id] == loss
            return CreateLossOutcome.DUPLICATE if is_same else CreateLossOutcome.CONFLICT
        if self._sessions.records[session_id].finished_reason is not None:
            return CreateLossOutcome.FINISHED
        self.records[loss_id] = loss
        kind = OperationKind.CREATE_CUSTOM_LOSS
        owner_id = ids.loss_owner_id(session_id)
        result = payload.encode(CustomLossResult(loss_id).to_payload())
        self._futures.records[loss_id] = Future(
            loss_id, tenant_id, owner_id, custom_loss_seq_id, kind, FutureState.DONE, result
        )
        return CreateLossOutcome.ACCEPTED

    async def get(self, loss_id: str) -> CustomLoss | None:
        return self.records.get(loss_id)


class Models:
    def __init__(self) -> None:
        self.records = {MODEL: model_record()}

    async def get(self, model_id: str) -> ModelRecord | None:
        return self.records.get(model_id)

    async def get_many(self, model_ids: Sequence[str]) -> list[ModelRecord]:
        return [self.records[each] for each in model_ids if each in self.records]

    async def of_session(self, session_id: str) -> list[str]:
        return [key for key, each in self.records.items() if each.session_id == session_id]


class Runs:
    def __init__(self, models: Models, sessions: Sessions, checkpoints: Checkpoints) -> None:
        self._models = models
        self._sessions = sessions
        self._checkpoints = checkpoints

    async def list(self, tenant_id: str, offset: int, limit: int) -> tuple[list[ModelRecord], int]:
        return self._page(offset, limit, lambda model: model.tenant_id == tenant_id)

    async def list_of_project(
        self, tenant_id: str, project_id: str, offset: int, limit: int
    ) -> tuple[list[ModelRecord], int]:
        def is_in_it(model: ModelRecord) -> bool:
            session = self._sessions.records.get(model.session_id)
            inherited = (session.project_id if session else None) or DEFAULT_PROJECT
            return model.tenant_id == tenant_id and project_id == (model.project_id or inherited)

        return self._page(offset, limit, is_in_it)

    async def list_accessible(
        self, tenant_id: str, offset: int, limit: int
    ) -> tuple[list[ModelRecord], int]:
        records = self._checkpoints.records.values()
        published = {each.model_id for each in records if each.is_public}
        return self._page(
            offset,
            limit,
            lambda model: model.tenant_id == tenant_id or model.model_id in published,
        )

    def _page(
        self, offset: int, limit: int, is_shown: Callable[[ModelRecord], bool]
    ) -> tuple[list[ModelRecord], int]:
        found = [each for each in self._models.records.values() if is_shown(each)]
        return found[::-1][offset : offset + limit], len(found)


class Futures:
    def __init__(self) -> None:
        self.records: dict[str, Future] = {}
        self.acknowledged: list[str] = []
        self.handed_out: list[str] = []
        self.order: list[str] = []
        self.partials: dict[str, list[PartialToken]] = {}
        self._subscribers: list[asyncio.Queue[str]] = []

    async def get(self, request_id: str) -> Future | None:
        return self.records.get(request_id)

    async def progress(self, request_id: str, num_seen: int) -> Progress:
        is_final = self.records[request_id].state is not FutureState.PENDING
        shown = [] if is_final else self.partials.get(request_id, [])
        return Progress(shown[num_seen:], is_final)

    def show(self, request_id: str, *tokens: PartialToken) -> None:
        self.partials.setdefault(request_id, []).extend(tokens)
        self.announce(request_id)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[AsyncIterator[str], None]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._subscribers.append(queue)
        yield self._announcements(queue)

    async def _announcements(self, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
        while True:
            yield await queue.get()

    def announce(self, request_id: str) -> None:
        for queue in self._subscribers:
            queue.put_nowait(request_id)

    def settle(
        self,
        request_id: str,
        result: Result | None = None,
        error: OperationError | None = None,
        *,
        announced: bool = True,
    ) -> None:
        state = FutureState.FAILED if error else FutureState.DONE
        data = payload.encode(result.to_payload()) if result else None
        self.records[request_id] = dataclasses.replace(
            self.records[request_id], state=state, result=data, error=error
        )
        self.order.append(request_id)
        if announced:
            self.announce(request_id)

    async def completions(
        self, sampling_session_id: str, clone_id: int, prev_cursor: int
    ) -> list[Completion]:
        found = [
            Completion(cursor, request_id, self.records[request_id].state)
            for cursor, request_id in enumerate(self.order, 1)
            if request_id.startswith(f"{sampling_session_id}:")
            and int(request_id.rpartition(":")[2]) // 1_000_000_000 == clone_id
        ]
        return [each for each in found if each.cursor > prev_cursor]

    async def fetched(self, request_id: str) -> None:
        self.handed_out.append(request_id)

    async def acknowledge(self, request_ids: Sequence[str]) -> None:
        self.acknowledged += request_ids


class Operations:
    def __init__(self, futures: Futures, models: Models) -> None:
        self.submissions: dict[str, Submission] = {}
        self.expired: set[str] = set()
        self._futures = futures
        self._models = models

    async def submit(self, submission: Submission) -> SubmitOutcome:
        request_id = submission.request_id
        if request_id in self.expired:
            return SubmitOutcome.EXPIRED
        earlier = self.submissions.get(request_id)
        if earlier is not None:
            is_same = earlier.sent == submission.sent
            return SubmitOutcome.DUPLICATE if is_same else SubmitOutcome.CONFLICT
        self.submissions[request_id] = submission
        self._futures.records[request_id] = Future(
            request_id,
            submission.tenant_id,
            submission.owner_id,
            submission.seq_id,
            submission.kind,
            FutureState.FAILED if submission.error else FutureState.PENDING,
            error=submission.error,
        )
        if submission.new_model is not None:
            self._models.records[submission.owner_id] = model_record(
                model_id=submission.owner_id,
                tenant_id=submission.tenant_id,
                lora=submission.new_model.lora,
                user_metadata=dict(submission.new_model.user_metadata),
            )
        return SubmitOutcome.ACCEPTED


class Cancellations:
    def __init__(self, futures: Futures) -> None:
        self.cancelled: list[str] = []
        self._futures = futures

    async def cancel(
        self, tenant_id: str, base_model: str, sampling_session_id: str, seq_id: int
    ) -> CancelOutcome:
        future = await self._futures.get(ids.request_id(sampling_session_id, seq_id))
        if future is None:
            return CancelOutcome.UNKNOWN
        assert future.tenant_id == tenant_id
        assert base_model
        if future.state is not FutureState.PENDING:
            return CancelOutcome.FINAL
        self.cancelled.append(future.request_id)
        self._futures.settle(future.request_id, error=user_error("cancelled"))
        return CancelOutcome.CANCELLED


class Checkpoints:
    def __init__(self) -> None:
        self.records: dict[str, Checkpoint] = {}
        self.doomed: list[CheckpointFiles] = []
        self.now_ms = 10_000

    def put(self, checkpoint: Checkpoint) -> Checkpoint:
        self.records[checkpoint.path] = checkpoint
        return checkpoint

    async def get(self, path: str) -> Checkpoint | None:
        return self.records.get(path)

    async def of_model(self, model_id: str) -> list[Checkpoint]:
        return [each for each in self.records.values() if each.model_id == model_id][::-1]

    async def of_models(self, model_ids: Sequence[str]) -> list[list[Checkpoint]]:
        return [await self.of_model(model_id) for model_id in model_ids]

    async def unlisted_of_model(self, model_id: str) -> list[str]:
        records = self.records.values()
        return [each.path for each in records if each.model_id == model_id and not each.is_listed]

    async def list(
        self, tenant_id: str, offset: int, limit: int, *, with_external: bool = True
    ) -> tuple[list[Checkpoint], int]:
        hidden = () if with_external else (CheckpointKind.EXTERNAL,)
        records = self.records.values()
        found = [each for each in records if each.tenant_id == tenant_id]
        found = [each for each in found if each.kind not in hidden]
        return found[::-1][offset : offset + limit], len(found)

    async def set_expiry(self, path: str, expires_at_ms: int | None, by: str = "") -> bool:
        return self._change(path, expires_at_ms=expires_at_ms)

    async def set_public(self, path: str, is_public: bool, by: str = "") -> bool:
        return self._change(path, is_public=is_public)

    def _change(self, path: str, **changes: Any) -> bool:
        if path in self.records:
            self.records[path] = dataclasses.replace(self.records[path], **changes)
        return path in self.records

    async def delete(self, path: str, by: str = "") -> CheckpointFiles | None:
        record = self.records.pop(path, None)
        if record is None:
            return None
        self.doomed.append(CheckpointFiles(path, record.revision))
        return self.doomed[-1]

    async def drop_expired(self) -> int:
        expired = [each.path for each in self.records.values() if each.has_expired(self.now_ms)]
        for path in expired:
            await self.delete(path)
        return len(expired)

    async def doomed_files(self, limit: int) -> list[CheckpointFiles]:
        return self.doomed[:limit]

    async def doom_files(self, files: CheckpointFiles, after_s: float) -> None:
        assert after_s > 0
        if files in self.doomed:
            self.doomed.remove(files)
        self.doomed.append(files)

    async def files_deleted(self, files: CheckpointFiles) -> None:
        self.doomed.remove(files)


class Copies:
    def __init__(self, models: Models, checkpoints: Checkpoints) -> None:
        self._models = models
        self._checkpoints = checkpoints

    async def record(
        self, copy: Checkpoint, copied_from: str, project_id: str | None, by: str
    ) -> bool:
        assert by
        if copy.model_id in self._models.records:
            return False
        self._models.records[copy.model_id] = model_record(
            model_id=copy.model_id,
            tenant_id=copy.tenant_id,
            is_ended=True,
            copied_from=copied_from,
            project_id=project_id,
        )
        self._checkpoints.put(copy)
        files = CheckpointFiles(copy.path, copy.revision)
        self._checkpoints.doomed = [each for each in self._checkpoints.doomed if each != files]
        return True


class BaseModels:
    def __init__(self) -> None:
        self.records = {BASE.name: BASE}
        self.modules = {BASE.name: MODULES}

    async def get(self, name: str) -> BaseModelInfo | None:
        return self.records.get(name)

    async def list(self) -> list[BaseModelInfo]:
        return list(self.records.values())

    async def target_modules(self, name: str) -> list[TargetModule]:
        return self.modules.get(name, [])


class Workers:
    def __init__(self) -> None:
        self.records = [WorkerStatus("worker-1", BASE.name, 1000, True, None, {"name": "w"})]

    async def list(self) -> list[WorkerStatus]:
        return self.records


class Gaps:
    def __init__(self) -> None:
        self.awaited: set[tuple[str, int]] = set()

    async def is_awaited(self, model_id: str, seq_id: int) -> bool:
        return (model_id, seq_id) in self.awaited


class Memory:
    def __init__(self) -> None:
        self.reading = MemoryReading(used_bytes=10 * _MIB, limit_bytes=1000 * _MIB)

    async def read(self) -> MemoryReading:
        return self.reading


class StoreDouble:
    """All parts of the store that the server uses."""

    def __init__(self) -> None:
        self.tenants = Tenants()
        self.audit = Audit()
        self.metering = Metering()
        self.traces = Traces()
        self.secrets = Secrets()
        self.sessions = Sessions()
        self.sampling = Sampling()
        self.models = Models()
        self.futures = Futures()
        self.custom_losses = CustomLosses(self.sessions, self.futures)
        self.operations = Operations(self.futures, self.models)
        self.cancellations = Cancellations(self.futures)
        self.checkpoints = Checkpoints()
        self.copies = Copies(self.models, self.checkpoints)
        self.runs = Runs(self.models, self.sessions, self.checkpoints)
        self.base_models = BaseModels()
        self.workers = Workers()
        self.gaps = Gaps()
        self.memory = Memory()

    def submitted(self, request_id: str) -> Submission:
        return self.operations.submissions[request_id]


class StorageDouble:
    """Files of one base model; remembers what was deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.files: dict[str, list[StoredFile]] = {}
        self.copied: list[tuple[str, str]] = []
        self.is_stuck = False
        self.error: OSError | None = None
        self.on_copy: Callable[[], object] = lambda: None

    def tokenizer_file(self, base_model: str, name: str) -> bytes:
        assert base_model == BASE.name
        return f"contents of {name}".encode()

    def begin_revision(self, path: CheckpointPath, revision: str) -> Path:
        raise NotImplementedError("uploads are tested on real storage")

    def finish_revision(self, path: CheckpointPath, revision: str) -> int:
        raise NotImplementedError("uploads are tested on real storage")

    def checkpoint_files(self, path: CheckpointPath, revision: str) -> list[StoredFile]:
        return self.files.get(f"{path} {revision}", [])

    def copy_revision(
        self,
        source: CheckpointPath,
        source_revision: str,
        target: CheckpointPath,
        target_revision: str,
    ) -> None:
        assert source_revision != target_revision
        if self.error is not None:
            raise self.error
        self.copied.append((str(source), str(target)))
        self.on_copy()

    def delete_revision(self, path: CheckpointPath, revision: str) -> bool:
        if self.is_stuck:
            return False
        assert revision
        self.deleted.append(str(path))
        return True


def model_record(**changes: Any) -> ModelRecord:
    record = ModelRecord(
        model_id=MODEL,
        tenant_id=TENANT,
        session_id=SESSION,
        base_model=BASE.name,
        lora=LoraConfig(lora_rank=8),
        created_at_ms=1000,
        last_request_at_ms=2000,
        logged_seq_id=0,
        applied_seq_id=0,
        snapshot_seq_id=-1,
        snapshot_epoch=0,
        worker_id=None,
        epoch=0,
        user_metadata={},
    )
    return dataclasses.replace(record, **changes)


def checkpoint(
    name: str = "final", kind: CheckpointKind = CheckpointKind.TRAINING, **changes: Any
) -> Checkpoint:
    record = Checkpoint(
        path=str(CheckpointPath(MODEL, kind, name)),
        tenant_id=TENANT,
        model_id=MODEL,
        kind=kind,
        name=name,
        base_model=BASE.name,
        lora=LoraConfig(lora_rank=8),
        has_optimizer=kind is CheckpointKind.TRAINING,
        num_bytes=123,
        created_at_ms=1000,
    )
    return dataclasses.replace(record, **changes)


def pending(request_id: str, kind: OperationKind = OperationKind.OPTIM_STEP) -> Future:
    owner_id, _, seq_id = request_id.rpartition(":")
    return Future(request_id, TENANT, owner_id, int(seq_id), kind, FutureState.PENDING)


def user_error(message: str = "bad") -> OperationError:
    return OperationError(message, ErrorCategory.USER)


def manual_clock() -> ManualClock:
    return ManualClock(10_000)
