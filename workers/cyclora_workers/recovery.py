"""Which models' states are in memory: restored when needed, covered by snapshots, evicted.

A worker holds state for a model only under the epoch of its assignment. Anything else, after a
crash, a move or a fencing, is made again (``replay``), with the sampler weights that were handed
over and are in no storage yet.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from torch import Tensor

from cyclora_core.placement import Held, Place
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.types import ModelRecord, PlannedModel
from cyclora_workers.engine import Engine
from cyclora_workers.handover import HandOver
from cyclora_workers.host_states import HostStates
from cyclora_workers.metrics import WorkerMetrics
from cyclora_workers.replay import InThread, Replay
from cyclora_workers.snapshot_writer import SnapshotCopy, SnapshotWriter, Written

_log = structlog.get_logger()

_MAX_LOGGED_OPERATIONS = 512
_MIN_TOKENS_PER_S = 100.0
_MAX_LOOKED_AT = 64
_OVERDUE = 2.0
"""A log this many times too long to replay makes its model's cycle wait for the disk."""


@dataclass(slots=True, eq=False)
class _Held:
    """A model whose state is in memory."""

    epoch: int
    snapshot_seq_id: int
    snapshot_epoch: int
    applied_seq_id: int
    last_use: int
    num_replay_tokens: int = 0
    is_over: bool = False
    """Nothing more is done with it here: another worker holds the model, or it has ended."""

    @property
    def is_covered(self) -> bool:
        """Whether storage holds all that is in memory."""
        return self.applied_seq_id <= self.snapshot_seq_id


class ModelKeeper:
    """Knows which models' states are in memory, restores others, and has snapshots written."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        engine: Engine,
        in_thread: InThread,
        handover: HandOver,
        worker_id: str,
        *,
        max_replay_s: float,
        max_adapter_bytes: int,
        max_host_adapter_bytes: int,
        metrics: WorkerMetrics,
    ) -> None:
        self._store = store
        self._storage = storage
        self._engine = engine
        self._in_thread = in_thread
        self._max_replay_s = max_replay_s
        self._max_adapter_bytes = max_adapter_bytes
        self._handover = handover
        self.host = HostStates(storage, max_host_adapter_bytes)
        self._metrics = metrics
        self._has_host_copies = engine.base_model.device.type != "cpu"
        """Whether an evicted state is kept in host memory, where that is not what it left."""
        self._has_evicted = False
        self._worker_id = worker_id
        self._writer = SnapshotWriter(store, storage, handover, worker_id, metrics)
        self._held: dict[str, _Held] = {}
        self._uses = itertools.count()

    @property
    def num_writing(self) -> int:
        """Snapshots on their way to storage."""
        return self._writer.num_writing

    async def ensure(self, planned: PlannedModel) -> ModelRecord | None:
        """Have the model's state in memory; None when there is no such model any more."""
        record = await self._store.models.get(planned.model_id)
        if record is None:
            return None
        held = self._held.get(planned.model_id)
        if held is None or held.epoch != planned.epoch:
            self.forget(planned.model_id)
            if not record.is_ended:
                await self._restore(record)
            held = self._held[planned.model_id] = _Held(
                planned.epoch,
                record.snapshot_seq_id,
                record.snapshot_epoch,
                record.applied_seq_id,
                last_use=0,
                is_over=record.is_ended,
            )
        held.last_use = next(self._uses)
        return record

    async def expect(self, planned: Sequence[PlannedModel]) -> None:
        """Begin to read the snapshots that ``ensure`` will need, side by side."""
        missing = [
            each.model_id
            for each in planned
            if (held := self._held.get(each.model_id)) is None or held.epoch != each.epoch
        ]
        if missing:
            self._read_ahead(await self._store.models.get_many(missing))

    async def look_ahead(self, base_model: str) -> None:
        """Begin to read evicted models that wait already, while the present cycle runs."""
        self.host.keep_read()
        if not self._has_evicted:
            return
        waiting = await self._store.models.waiting(base_model) - self._held.keys()
        found = await self._store.models.get_many(sorted(waiting)[:_MAX_LOOKED_AT])
        self._read_ahead([each for each in found if each.worker_id == self._worker_id])

    def _read_ahead(self, records: Sequence[ModelRecord]) -> None:
        for record in records:
            if not record.is_ended:
                self.host.read_ahead(record)

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
        model_id = record.model_id
        began_s = time.perf_counter()
        replay = Replay(self._store, self._engine, self._in_thread, record)
        await replay.begin(self.host)
        for seq_id, path in (await self._store.handovers.of_model(model_id)).items():
            if seq_id <= record.applied_seq_id:
                await replay.go_on_to(seq_id)
                await self._handover.again(model_id, model_id, seq_id, path)
        await replay.go_on_to(record.applied_seq_id)
        if replay.num_operations or record.snapshot_seq_id >= 0:
            self._metrics.restored(time.perf_counter() - began_s, replay.num_operations)
            _log.info(
                "model restored",
                model_id=model_id,
                snapshot_seq_id=record.snapshot_seq_id,
                num_replayed=replay.num_operations,
            )

    async def cycle_ended(self) -> None:
        """Begin the snapshots that are due, and keep memory within its bound."""
        for model_id, held in list(self._held.items()):
            if held.is_over:
                self.forget(model_id)
        for model_id, held in list(self._held.items()):
            cost = self._replay_cost(held)
            if cost <= 1.0 or self._writer.is_writing(model_id):
                continue
            if self._writer.is_full:
                if cost <= _OVERDUE:
                    continue
                await self._writer.wait_for_one()
            await self._begin_snapshot(model_id, held)
        await self._evict()

    def _replay_cost(self, held: _Held) -> float:
        """What replaying a model's log would cost, in units of what it may."""
        speed = max(self._engine.tokens_per_s, _MIN_TOKENS_PER_S)
        num_operations = held.applied_seq_id - held.snapshot_seq_id
        replay_s = held.num_replay_tokens / speed
        return max(replay_s / self._max_replay_s, num_operations / _MAX_LOGGED_OPERATIONS)

    async def _copy(self, model_id: str, held: _Held, seq_id: int) -> SnapshotCopy:
        tensors = await self._in_thread(self._engine.export_state, model_id)
        return SnapshotCopy(model_id, held.epoch, seq_id, tensors)

    async def _begin_snapshot(self, model_id: str, held: _Held) -> None:
        if not self._engine.has(model_id):
            return  # its creation failed: there is no state
        if self._engine.has_part_of(model_id):
            return  # the gradient holds part of an unsettled pass, which would be run again
        copy = await self._copy(model_id, held, held.applied_seq_id)
        num_tokens = held.num_replay_tokens

        def ended(written: Written) -> None:
            held.is_over = held.is_over or written.is_fenced
            if written.is_recorded and copy.seq_id > held.snapshot_seq_id:
                held.snapshot_seq_id, held.snapshot_epoch = copy.seq_id, copy.epoch
                held.num_replay_tokens -= num_tokens

        self._writer.begin(copy, ended)

    async def snapshots_written(self) -> None:
        """Wait until the snapshots that were begun are on disk, or have failed."""
        await self._writer.wait_for_all()

    async def write_ahead(self, model_id: str, seq_id: int) -> None:
        """Bring the state after an operation to disk before the operation settles.

        Raises:
            OSError: storage does not take it.
        """
        # The log behind it is dropped when it settles.
        await self._handover.written(model_id)
        await self._writer.write_files(await self._copy(model_id, self._held[model_id], seq_id))

    async def covered(self, model_id: str, seq_id: int) -> None:
        """Note that an operation has settled with its snapshot, and drop the log behind it."""
        held = self._held[model_id]
        held.snapshot_seq_id, held.snapshot_epoch = seq_id, held.epoch
        held.num_replay_tokens = 0
        await self._writer.wait_for(model_id)
        await self._writer.record(model_id, held.epoch, seq_id)

    async def end(self, model_id: str, seq_id: int) -> None:
        """Delete all that an unloaded model has left: its state, log and snapshots."""
        held = self._held[model_id]
        self._engine.drop(model_id)
        await self._writer.wait_for(model_id)
        await self._writer.record(model_id, held.epoch, seq_id)
        held.snapshot_seq_id, held.is_over = seq_id, True
        await self._in_thread(self._storage.delete_snapshots, model_id)

    async def _evict(self) -> None:
        """Write the states used longest ago to storage and drop them until the others fit.

        Those that leave a GPU stay in host memory as far as that is allowed to them.
        """
        sizes = {model_id: self._engine.num_bytes(model_id) for model_id in self._held}
        surplus = sum(sizes.values()) - self._max_adapter_bytes
        for model_id, held in sorted(self._held.items(), key=lambda item: item[1].last_use):
            if surplus <= 0:
                return
            if self._engine.has_part_of(model_id):
                continue
            await self._cover(model_id, held)
            if held.is_covered or held.is_over:
                if held.is_covered and not held.is_over:
                    await self._keep_for_later(model_id, held)
                self.forget(model_id)
                surplus -= sizes[model_id]
                self._metrics.evicted()
                _log.info("model evicted", model_id=model_id, num_bytes=sizes[model_id])

    async def _keep_for_later(self, model_id: str, held: _Held) -> None:
        self._has_evicted = True
        if self._has_host_copies and self._engine.has(model_id):

            def in_host_memory() -> dict[str, Tensor]:
                exported = self._engine.export_state(model_id)
                return {name: tensor.cpu() for name, tensor in exported.items()}

            state = await self._in_thread(in_host_memory)
            self.host.put(model_id, held.snapshot_seq_id, held.snapshot_epoch, state)

    async def put_away(self, model_id: str) -> None:
        """Have storage hold all that is in memory of a model, and drop it here.

        Also the weights that it handed over: another worker may be asked for them next.

        Raises:
            OSError: storage does not take it; it stays in memory.
        """
        await self._handover.written(model_id)
        held = self._held.get(model_id)
        if held is not None and self._engine.has(model_id) and not held.is_over:
            # Part of a pass that no operation has settled is run again where the model goes.
            self._engine.undo_parts_of(model_id)
            await self._cover(model_id, held)
            if not held.is_covered and not held.is_over:
                raise OSError("its snapshot could not be written")
        self.forget(model_id)

    @property
    def free_bytes(self) -> int:
        """Of the memory for states; below 0 while a cycle uses more than is kept after it."""
        used_bytes = sum(self._engine.num_bytes(model_id) for model_id in self._held)
        return self._max_adapter_bytes - used_bytes

    @property
    def max_bytes(self) -> int:
        """Of the memory for states."""
        return self._max_adapter_bytes

    def places(self) -> dict[str, Held]:
        """Where the states are that this worker has in memory, and what they take."""
        in_host = {
            model_id: Held(Place.HOST, num_bytes)
            for model_id, num_bytes in self.host.sizes().items()
        }
        on_device = {
            model_id: Held(Place.DEVICE, self._engine.num_bytes(model_id))
            for model_id, held in self._held.items()
            if self._engine.has(model_id) and not held.is_over
        }
        return in_host | on_device

    async def snapshot_all(self) -> None:
        """Have storage hold every state in memory, so that the next worker replays nothing."""
        for model_id, held in list(self._held.items()):
            self._engine.undo_parts_of(model_id)
            await self._cover(model_id, held)

    async def _cover(self, model_id: str, held: _Held) -> None:
        await self._writer.wait_for(model_id)
        if not held.is_covered and not held.is_over:
            await self._begin_snapshot(model_id, held)
            await self._writer.wait_for(model_id)
