"""Snapshots on their way to storage, in threads beside the engine's.

The engine copies a state, which takes as long as reading its memory once; bringing the copy to
disk then costs the cycles nothing. A few copies exist at a time, and one per model, so that a
model's snapshots end in the order in which they began.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from torch import Tensor

from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_workers import snapshot
from cyclora_workers.handover import HandOver
from cyclora_workers.metrics import WorkerMetrics

MAX_WRITES = 4
"""Copies of states that may be in memory at one time, waiting for the disk."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SnapshotCopy:
    """A model's state after ``seq_id``, apart from the engine's."""

    model_id: str
    epoch: int
    seq_id: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Written:
    """How a snapshot ended: recorded, refused to a fenced worker, or not on disk at all."""

    is_recorded: bool
    is_fenced: bool = False


class SnapshotWriter:
    """Writes copies durably, records them in the store and deletes what they replace."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        handover: HandOver,
        worker_id: str,
        metrics: WorkerMetrics,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._storage = storage
        self._handover = handover
        self._worker_id = worker_id
        self._tasks: dict[str, asyncio.Task[Written]] = {}

    @property
    def is_full(self) -> bool:
        """Whether another copy has to wait until one of the present ones is written."""
        return len(self._tasks) >= MAX_WRITES

    @property
    def num_writing(self) -> int:
        return len(self._tasks)

    def is_writing(self, model_id: str) -> bool:
        return model_id in self._tasks

    def begin(self, copy: SnapshotCopy, ended: Callable[[Written], None]) -> None:
        """Write and record in the background; ``ended`` is told how it went."""
        assert copy.model_id not in self._tasks, f"{copy.model_id} is being written already"
        task = asyncio.create_task(self.write(copy))
        self._tasks[copy.model_id] = task

        def finished(task: asyncio.Task[Written]) -> None:
            del self._tasks[copy.model_id]
            if task.cancelled():
                return
            if error := task.exception():
                _log.error("snapshot failed", model_id=copy.model_id, exc_info=error)
            ended(Written(is_recorded=False) if error else task.result())

        task.add_done_callback(finished)

    async def wait_for_one(self) -> None:
        """Wait until any write has ended."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)

    async def wait_for_all(self) -> None:
        """Wait until nothing is being written."""
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def wait_for(self, model_id: str) -> None:
        """Wait until nothing of this model is being written."""
        if task := self._tasks.get(model_id):
            await asyncio.wait([task])

    async def write(self, copy: SnapshotCopy) -> Written:
        """Write and record one copy now."""
        began_s = time.perf_counter()
        try:
            await self.write_files(copy)
            # Recording it drops the log that handed-over weights could be made again from.
            await self._handover.written(copy.model_id, copy.seq_id)
        except OSError as error:
            # Nothing is lost: the log is kept until a snapshot covers it. It is tried again.
            self._metrics.snapshot_failed()
            _log.error(
                "snapshot failed", model_id=copy.model_id, seq_id=copy.seq_id, reason=str(error)
            )
            return Written(is_recorded=False)
        is_recorded = await self.record(copy.model_id, copy.epoch, copy.seq_id)
        if is_recorded:
            self._metrics.snapshot_written(time.perf_counter() - began_s)
            _log.info("snapshot written", model_id=copy.model_id, seq_id=copy.seq_id)
        return Written(is_recorded, is_fenced=not is_recorded)

    async def write_files(self, copy: SnapshotCopy) -> None:
        """Bring a copy to disk without recording it.

        Raises:
            OSError: storage does not take it.
        """
        folder = self._storage.snapshot_dir(copy.model_id, copy.seq_id, copy.epoch)
        await asyncio.to_thread(snapshot.write, copy.tensors, folder)

    async def record(self, model_id: str, epoch: int, seq_id: int) -> bool:
        """Drop the log that a snapshot on disk covers; false when the model has moved away."""
        if not await self._store.models.record_snapshot(model_id, self._worker_id, epoch, seq_id):
            return False
        await asyncio.to_thread(self._storage.delete_snapshots_before, model_id, seq_id, epoch)
        return True
