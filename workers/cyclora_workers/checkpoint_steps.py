"""Saving: a model's weights become a checkpoint on storage, and perhaps a sampling session."""

from __future__ import annotations

from collections.abc import Sequence

from cyclora_core.errors import ServerError, UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import OperationKind, SaveWeightsBody, SaveWeightsResult
from cyclora_core.records import Checkpoint, SamplingSession
from cyclora_core.storage import Storage, total_bytes
from cyclora_core.store import Store
from cyclora_core.types import ModelRecord, PlannedOperation
from cyclora_workers.checkpoint import is_complete
from cyclora_workers.engine import Engine
from cyclora_workers.handover import HandOver
from cyclora_workers.replay import InThread


class CheckpointSteps:
    """Executes save_weights, save_weights_for_sampler and save_weights_external."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        engine: Engine,
        in_thread: InThread,
        handover: HandOver,
    ) -> None:
        self._store = store
        self._storage = storage
        self._engine = engine
        self._in_thread = in_thread
        self._handover = handover
        self._clock = store.clock

    async def save(
        self, model: ModelRecord, operation: PlannedOperation, body: SaveWeightsBody
    ) -> SaveWeightsResult:
        """Write the files beside those of an earlier save of the name, then switch the record.

        Weights for a sampling session alone are handed over in memory, and written afterwards.
        Whoever reads the checkpoint finds the old files or the new ones, and doing it twice has the
        same effect as once.

        Raises:
            UserError: another save made a checkpoint of this path, and ``overwrite`` is off; or its
                tenant would have more stored than it may have.
            ServerError: this worker was declared dead, and its successor has saved the path since.
        """
        path = CheckpointPath.parse(body.path)
        existing = await self._store.checkpoints.get(body.path)
        is_other = existing is not None and existing.request_id != operation.request_id
        if is_other and not body.overwrite:
            raise UserError(
                f"checkpoint {body.path!r} exists; choose another name or set overwrite"
            )
        session_id = body.sampling_session_id
        await self._check_session(session_id, body.path)
        if session_id is not None:
            return await self._hand_over(model, operation, body, session_id)
        revision = str(operation.seq_id)
        has_optimizer = operation.kind is OperationKind.SAVE_WEIGHTS
        num_bytes: int = await self._in_thread(
            self._write, model.model_id, path, revision, has_optimizer, body.age_recipients
        )
        # One that this very save recorded before it was cut off may have been published since.
        if existing is None or is_other:
            try:
                await self._record(model, operation, body, num_bytes)
            except UserError:
                # Beyond a quota of its tenant: what was written belongs to nobody.
                await self._in_thread(self._storage.delete_revision, path, revision)
                raise
        await self._in_thread(self._storage.delete_other_revisions, path, revision)
        return SaveWeightsResult(path=body.path, num_bytes=num_bytes)

    async def _hand_over(
        self,
        model: ModelRecord,
        operation: PlannedOperation,
        body: SaveWeightsBody,
        session_id: str,
    ) -> SaveWeightsResult:
        """Let a sampling session use the weights at once; storage gets them in the background."""
        handed_over = await self._handover.begin(model.model_id, operation.seq_id, body.path)
        await self._record(model, operation, body, handed_over.num_bytes)
        self._handover.finish(handed_over)
        await self._store.sampling.create(
            SamplingSession(
                sampling_session_id=session_id,
                tenant_id=model.tenant_id,
                session_id=model.session_id,
                base_model=model.base_model,
                weights_path=body.path,
                model_path=None,
                created_at_ms=self._clock.now_ms(),
            )
        )
        return SaveWeightsResult(sampling_session_id=session_id, num_bytes=handed_over.num_bytes)

    async def _record(
        self,
        model: ModelRecord,
        operation: PlannedOperation,
        body: SaveWeightsBody,
        num_bytes: int,
    ) -> None:
        path, now_ms = CheckpointPath.parse(body.path), self._clock.now_ms()
        is_recorded = await self._store.checkpoints.put(
            Checkpoint(
                path=body.path,
                tenant_id=model.tenant_id,
                model_id=model.model_id,
                kind=path.kind,
                name=path.name,
                base_model=model.base_model,
                lora=model.lora,
                has_optimizer=operation.kind is OperationKind.SAVE_WEIGHTS,
                num_bytes=num_bytes,
                created_at_ms=now_ms,
                request_id=operation.request_id,
                revision=str(operation.seq_id),
                is_listed=body.sampling_session_id is None,
                expires_at_ms=None if body.ttl_s is None else now_ms + body.ttl_s * 1000,
                user_metadata=body.user_metadata,
                optimizer_type=model.optimizer_type,
            )
        )
        if not is_recorded:
            # Only a worker that slept past its lease comes here, and can settle nothing more.
            raise ServerError(f"a later save of {body.path!r} was recorded meanwhile")

    async def _check_session(self, session_id: str | None, path: str) -> None:
        session = await self._store.sampling.get(session_id) if session_id else None
        if session is not None and session.weights_path != path:
            raise UserError(
                f"sampling session {session_id!r} exists and samples {session.weights_path!r}; "
                "number each sampling session of a session differently"
            )

    async def discard_ephemeral(self, model: ModelRecord) -> None:
        """Delete what only the sampling sessions of a finished session could read.

        The server does it when the session is finished; saves that were queued then come later.
        """
        session = await self._store.sessions.get(model.session_id)
        if session is not None and session.finished_reason is None:
            return
        for path in await self._store.checkpoints.unlisted_of_model(model.model_id):
            files = await self._store.checkpoints.delete(path)
            if files is None:
                continue
            parsed, revision = CheckpointPath.parse(path), files.revision
            if await self._in_thread(self._storage.delete_revision, parsed, revision):
                await self._store.checkpoints.files_deleted(files)

    def _write(
        self,
        model_id: str,
        path: CheckpointPath,
        revision: str,
        has_optimizer: bool,
        age_recipients: Sequence[str],
    ) -> int:
        folder = self._storage.checkpoint_dir(path, revision)
        if is_complete(folder):  # this very save was cut off before it settled
            num_bytes = total_bytes(folder.iterdir())
        else:
            num_bytes = self._engine.save(
                model_id, folder, optimizer=has_optimizer, age_recipients=age_recipients
            )
        if path.kind is CheckpointKind.SAMPLER:
            self._engine.freeze_for_sampling(model_id, folder)
        return num_bytes
