"""States in host memory: those that left a GPU, and those read from storage before they are needed.

Storage holds a snapshot of each, so any of them may be dropped at any time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cyclora_core.storage import Storage
from cyclora_core.types import ModelRecord
from cyclora_workers import snapshot

MAX_READS = 8
"""Snapshots that are read at one time; each takes the memory of its state, beside the bound."""

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Key:
    """Which snapshot of a model it equals."""

    seq_id: int
    epoch: int


class HostStates:
    """Complete states by model, within a bound of bytes; those used longest ago go first."""

    def __init__(self, storage: Storage, max_bytes: int) -> None:
        self._storage = storage
        self._max_bytes = max_bytes
        self._states: OrderedDict[str, tuple[_Key, State]] = OrderedDict()
        self._reads: dict[str, tuple[_Key, asyncio.Task[State]]] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of what is here, without what is being read; may be asked for in any thread."""
        return sum(_size(state) for _, state in list(self._states.values()))

    @property
    def num_states(self) -> int:
        return len(self._states)

    def sizes(self) -> dict[str, int]:
        """Bytes of each state that is here."""
        return {model_id: _size(state) for model_id, (_, state) in self._states.items()}

    def put(self, model_id: str, seq_id: int, epoch: int, state: State) -> None:
        """Keep a state that equals a snapshot, if it fits at all."""
        self._states.pop(model_id, None)
        if _size(state) <= self._max_bytes:
            self._states[model_id] = (_Key(seq_id, epoch), state)
        while self.num_bytes > self._max_bytes:
            self._states.popitem(last=False)

    def read_ahead(self, record: ModelRecord) -> None:
        """Begin to read a model's snapshot in a thread beside the engine's.

        Nothing happens if that was begun, or is done, or if enough others are being read.
        """
        key, model_id = _key_of(record), record.model_id
        is_here = model_id in self._states and self._states[model_id][0] == key
        if key.seq_id < 0 or is_here or model_id in self._reads or len(self._reads) >= MAX_READS:
            return
        folder = self._storage.snapshot_dir(model_id, key.seq_id, key.epoch)
        task = asyncio.create_task(asyncio.to_thread(snapshot.load, folder))
        # Looked at here, since nobody may come to take it.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._reads[model_id] = (key, task)

    async def take(self, record: ModelRecord) -> State:
        """The state of a model's snapshot: from memory, or from storage.

        Raises:
            OSError: storage cannot be read.
        """
        key, model_id = _key_of(record), record.model_id
        kept, reading = self._states.pop(model_id, None), self._reads.pop(model_id, None)
        if kept is not None and kept[0] == key:
            return kept[1]
        if reading is not None and reading[0] == key:
            return await reading[1]
        folder = self._storage.snapshot_dir(model_id, key.seq_id, key.epoch)
        return await asyncio.to_thread(snapshot.load, folder)

    def keep_read(self) -> None:
        """Keep what was read ahead and not taken yet, within the bound."""
        for model_id, (key, task) in list(self._reads.items()):
            if task.done():
                del self._reads[model_id]
                if not task.cancelled() and task.exception() is None:
                    self.put(model_id, key.seq_id, key.epoch, task.result())


def _key_of(record: ModelRecord) -> _Key:
    return _Key(record.snapshot_seq_id, record.snapshot_epoch)


def _size(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())
