"""A model's state from its last snapshot and its command log, and new snapshots in time.

A worker holds state for a model only under the epoch of its assignment. Anything else, after a
crash, a move or a fencing, is rebuilt: read the snapshot, replay the settled operations that
followed it. On the same hardware the numbers come out the same bit for bit, since blocks make
them independent of what shared the original cycles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from cyclora_core import payload
from cyclora_core.errors import ServerError, UserError
from cyclora_core.ids import CheckpointPath
from cyclora_core.operations import BODY_TYPES, Body, OperationKind, PassBody
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.types import ModelRecord, PlannedModel, PlannedOperation
from cyclora_workers.engine import Engine, Pass

_log = structlog.get_logger()

_MAX_LOGGED_OPERATIONS = 512
_MIN_TOKENS_PER_S = 100.0

InThread = Callable[..., Awaitable[Any]]
"""Runs a function of the engine in its thread."""


@dataclass(slots=True)
class _Held:
    """A model whose state is in memory."""

    epoch: int
    snapshot_seq_id: int
    applied_seq_id: int
    num_replay_tokens: int = 0


class ModelKeeper:
    """Knows which models' states are in memory, restores others, and writes snapshots."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        engine: Engine,
        in_thread: InThread,
        worker_id: str,
        max_replay_s: float,
    ) -> None:
        self._store = store
        self._storage = storage
        self._engine = engine
        self._in_thread = in_thread
        self._worker_id = worker_id
        self._max_replay_s = max_replay_s
        self._held: dict[str, _Held] = {}

    async def ensure(self, planned: PlannedModel) -> ModelRecord | None:
        """Have the model's state in memory; None when there is no such model any more."""
        record = await self._store.models.get(planned.model_id)
        if record is None:
            return None
        held = self._held.get(planned.model_id)
        if held is None or held.epoch != planned.epoch:
            self.forget(planned.model_id)
            await self._restore(record)
            self._held[planned.model_id] = _Held(
                planned.epoch, record.snapshot_seq_id, record.applied_seq_id
            )
        return record

    def forget(self, model_id: str) -> None:
        """Drop a model that this worker no longer holds, or whose state may be wrong."""
        self._held.pop(model_id, None)
        self._engine.drop(model_id)

    def applied(self, model_id: str, seq_id: int, num_tokens: int) -> None:
        """Note that an operation was settled, and what replaying it would cost."""
        held = self._held[model_id]
        held.applied_seq_id = seq_id
        held.num_replay_tokens += num_tokens

    async def _restore(self, record: ModelRecord) -> None:
        if record.snapshot_seq_id >= 0:
            folder = self._storage.snapshot_dir(record.model_id, record.snapshot_seq_id)
            await self._in_thread(self._engine.read_snapshot, record.model_id, record.lora, folder)
        operations = await self._store.operations.replayable(
            record.model_id, record.snapshot_seq_id + 1, record.applied_seq_id
        )
        for operation in operations:
            (data,) = await self._store.operations.bodies([operation.request_id])
            await self._in_thread(self._replay, record.model_id, operation, data)
        if operations or record.snapshot_seq_id >= 0:
            _log.info(
                "model restored",
                model_id=record.model_id,
                snapshot_seq_id=record.snapshot_seq_id,
                num_replayed=len(operations),
            )

    def _replay(self, model_id: str, operation: PlannedOperation, data: bytes) -> None:
        body = decode_body(operation.kind, data)
        engine = self._engine
        if isinstance(body, PassBody):
            one = Pass(operation.request_id, model_id, body, True)
            *_, outcomes = engine.run_passes([one])
            failure = outcomes[one.request_id]
            if isinstance(failure, Exception):
                # It succeeded when it was settled; a state without it would be silently wrong.
                raise ServerError(f"replaying {one.request_id} failed") from failure
        elif operation.kind is OperationKind.OPTIM_STEP:
            with contextlib.suppress(UserError):  # refused then, refused now, to the same effect
                engine.optim_step(model_id, body)  # type: ignore[arg-type]
        elif operation.kind is OperationKind.CREATE_MODEL:
            engine.create(model_id, body.lora)  # type: ignore[union-attr]
        else:
            load(engine, self._storage, model_id, body)

    async def snapshot_if_due(self, model_ids: Sequence[str]) -> None:
        """Write a snapshot of each model whose log has become long to replay."""
        speed = max(self._engine.tokens_per_s, _MIN_TOKENS_PER_S)
        for model_id in model_ids:
            held = self._held.get(model_id)
            if held is None:
                continue
            num_operations = held.applied_seq_id - held.snapshot_seq_id
            replay_s = held.num_replay_tokens / speed
            if replay_s > self._max_replay_s or num_operations > _MAX_LOGGED_OPERATIONS:
                await self.snapshot(model_id)

    async def snapshot_all(self) -> None:
        """Write a snapshot of every model that settled anything since its last one."""
        for model_id, held in list(self._held.items()):
            if held.applied_seq_id > held.snapshot_seq_id:
                await self.snapshot(model_id)

    async def snapshot(self, model_id: str) -> None:
        held = self._held[model_id]
        if not self._engine.has(model_id):
            return  # its creation failed: there is no state
        if self._engine.has_part_of(model_id):
            return  # the gradient holds part of an unsettled pass, which would be run again
        seq_id = held.applied_seq_id
        folder = self._storage.snapshot_dir(model_id, seq_id)
        try:
            await self._in_thread(self._engine.write_snapshot, model_id, folder)
        except OSError as error:
            # Nothing is lost: the log is kept until a snapshot covers it. Tried again next cycle.
            _log.error("snapshot failed", model_id=model_id, seq_id=seq_id, reason=str(error))
            return
        if not await self._store.models.record_snapshot(
            model_id, self._worker_id, held.epoch, seq_id
        ):
            self.forget(model_id)
            return
        held.snapshot_seq_id, held.num_replay_tokens = seq_id, 0
        self._storage.delete_snapshots_before(model_id, seq_id)
        _log.info("snapshot written", model_id=model_id, seq_id=seq_id)


def load(engine: Engine, storage: Storage, model_id: str, body: Any) -> None:
    folder = storage.checkpoint_dir(CheckpointPath.parse(body.path))
    engine.load(model_id, body.lora, folder, optimizer=body.optimizer)


def decode_body(kind: OperationKind, data: bytes) -> Body:
    if kind is OperationKind.UNLOAD_MODEL:
        raise ValueError("unload_model has no body")
    return BODY_TYPES[kind].from_payload(payload.decode(data))
