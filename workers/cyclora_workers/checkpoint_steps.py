"""Saving: a model's weights become a checkpoint on storage, and perhaps a sampling session."""

from __future__ import annotations

from cyclora_core.clock import Clock, SystemClock
from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import OperationKind, SaveWeightsBody, SaveWeightsResult
from cyclora_core.records import Checkpoint, SamplingSession
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.types import ModelRecord, PlannedOperation
from cyclora_workers.engine import Engine
from cyclora_workers.recovery import InThread


class CheckpointSteps:
    """Executes save_weights and save_weights_for_sampler."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        engine: Engine,
        in_thread: InThread,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._storage = storage
        self._engine = engine
        self._in_thread = in_thread
        self._clock = clock or SystemClock()

    async def save(
        self, model: ModelRecord, operation: PlannedOperation, body: SaveWeightsBody
    ) -> SaveWeightsResult:
        """Write the files, then the record; both can be done twice to the same effect.

        Raises:
            UserError: another save made a checkpoint of this path, and ``overwrite`` is off.
        """
        path = CheckpointPath.parse(body.path)
        existing = await self._store.checkpoints.get(body.path)
        is_other = existing is not None and existing.request_id != operation.request_id
        if is_other and not body.overwrite:
            raise UserError(
                f"checkpoint {body.path!r} exists; choose another name or set overwrite"
            )
        has_optimizer = operation.kind is OperationKind.SAVE_WEIGHTS
        num_bytes: int = await self._in_thread(self._write, model.model_id, path, has_optimizer)
        now_ms = self._clock.now_ms()
        session_id = body.sampling_session_id
        await self._store.checkpoints.put(
            Checkpoint(
                path=body.path,
                tenant_id=model.tenant_id,
                model_id=model.model_id,
                kind=path.kind,
                name=path.name,
                base_model=model.base_model,
                lora=model.lora,
                has_optimizer=has_optimizer,
                num_bytes=num_bytes,
                created_at_ms=now_ms,
                request_id=operation.request_id,
                is_listed=session_id is None,
                expires_at_ms=None if body.ttl_s is None else now_ms + body.ttl_s * 1000,
                user_metadata=body.user_metadata,
            )
        )
        if session_id is None:
            return SaveWeightsResult(path=body.path, num_bytes=num_bytes)
        await self._store.sampling.create(
            SamplingSession(
                sampling_session_id=session_id,
                tenant_id=model.tenant_id,
                session_id=model.session_id,
                base_model=model.base_model,
                weights_path=body.path,
                model_path=None,
                created_at_ms=now_ms,
            )
        )
        return SaveWeightsResult(sampling_session_id=session_id, num_bytes=num_bytes)

    def _write(self, model_id: str, path: CheckpointPath, has_optimizer: bool) -> int:
        self._engine.forget_sampler(str(path))
        folder = self._storage.checkpoint_dir(path)
        num_bytes = self._engine.save(model_id, folder, optimizer=has_optimizer)
        if path.kind is CheckpointKind.SAMPLER:
            self._engine.freeze_for_sampling(model_id, str(path))
        return num_bytes
