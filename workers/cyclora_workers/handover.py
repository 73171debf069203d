"""Sampler weights handed over in memory; their files are written while work goes on.

A save that nobody gave a name settles as soon as its weights are frozen in the engine. What makes
that safe is the model's log: the store notes the save as handed over, and until its files are in
storage no snapshot drops the log it could be made again from. Whoever needs the weights in between
and does not have them (their worker died, or is another one) makes them again.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

import structlog

from cyclora_core.ids import CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_workers.adapter import FrozenWeights
from cyclora_workers.checkpoint import is_complete
from cyclora_workers.engine import Engine
from cyclora_workers.host_states import HostStates
from cyclora_workers.replay import InThread, Replay

MAX_UNWRITTEN = 64
"""Handed-over weights that wait for storage at one time; a save beyond them waits with them."""

_CUT_OFF_S = 3600.0
"""After this long files go that were written without anybody left to want them."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Weights that are sampled from memory, and where their files belong."""

    model_id: str
    seq_id: int
    path: str
    folder: Path
    frozen: FrozenWeights

    @property
    def files(self) -> CheckpointFiles:
        return CheckpointFiles(self.path, str(self.seq_id))

    @property
    def num_bytes(self) -> int:
        """What the weights take as the fp32 that the files hold."""
        return 4 * self.frozen.layout.num_elements


class HandOver:
    """Freezes weights for samples and brings them to storage, one after the other."""

    def __init__(self, store: Store, storage: Storage, engine: Engine, in_thread: InThread) -> None:
        self._store = store
        self._storage = storage
        self._engine = engine
        self._in_thread = in_thread
        self._unwritten: dict[tuple[str, int], HandedOver] = {}
        self._writing: asyncio.Task[None] | None = None

    @property
    def num_unwritten(self) -> int:
        """Weights that are not in storage yet."""
        return len(self._unwritten)

    async def begin(self, model_id: str, seq_id: int, path: str) -> HandedOver:
        """Make a model's present weights those of the save ``seq_id``.

        Its checkpoint's record is to be put next, and then ``finish`` has the files written.

        Raises:
            OSError: storage takes nothing, and too many others wait for it already.
        """
        while len(self._unwritten) >= MAX_UNWRITTEN:
            await self._write_now()
        copy = await self._freeze(model_id, model_id, seq_id, path)
        await self._store.handovers.begin(model_id, seq_id, path)
        return copy

    def finish(self, copy: HandedOver) -> None:
        """Have the files of a handed-over save written in the background; its record is there."""
        self._unwritten[copy.model_id, copy.seq_id] = copy
        self.write()

    async def again(self, name: str, model_id: str, seq_id: int, path: str) -> None:
        """Hand over once more what a dead worker held; ``name`` is its state in the engine."""
        self.finish(await self._freeze(name, model_id, seq_id, path))

    async def _freeze(self, name: str, model_id: str, seq_id: int, path: str) -> HandedOver:
        folder = self._storage.checkpoint_dir(CheckpointPath.parse(path), str(seq_id))

        def freeze() -> FrozenWeights:
            self._engine.pin(folder)
            return self._engine.freeze_for_sampling(name, folder)

        return HandedOver(model_id, seq_id, path, folder, await self._in_thread(freeze))

    async def at_hand(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Have weights in memory that no storage holds yet; of others nothing is done.

        Raises:
            RuntimeError: they can be neither read nor made again.
        """
        if self._engine.has_sampler_weights(folder) or is_complete(folder):
            return
        model_id, seq_id = checkpoint.model_id, int(checkpoint.revision)
        handed_over = await self._store.handovers.of_model(model_id)
        model = await self._store.models.get(model_id)
        if model is None or handed_over.get(seq_id) != checkpoint.path:
            return  # in storage by now, or gone: reading it will tell
        name = f"{model_id}@{seq_id}"
        replay = Replay(self._store, self._engine, self._in_thread, model, name)
        try:
            await replay.begin(HostStates(self._storage, 0))
            await replay.go_on_to(seq_id)
            await self.again(name, model_id, seq_id, checkpoint.path)
        except Exception as error:
            # The worker that has the model may have brought them to storage meanwhile.
            if not is_complete(folder):
                message = f"the weights of {checkpoint.path} cannot be made again"
                raise RuntimeError(message) from error
        finally:
            await self._in_thread(self._engine.drop, name)
        _log.info("weights made again", model_id=model_id, num_replayed=replay.num_operations)

    def write(self) -> None:
        """Go on writing in the background, if something is left to write."""
        if self._unwritten and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write_all())
            self._writing.add_done_callback(_report)

    async def written(self, model_id: str | None = None, through_seq_id: int | None = None) -> None:
        """Wait until what was handed over of a model, or of all, is in storage.

        Raises:
            OSError: storage does not take it; it is tried again with the next ``write``.
        """
        while any(
            model_id in (None, model) and (through_seq_id is None or seq_id <= through_seq_id)
            for model, seq_id in self._unwritten
        ):
            await self._write_now()

    async def try_to_finish(self) -> None:
        """Wait until everything is in storage, or storage has refused it."""
        with contextlib.suppress(OSError):  # reported where it was written
            await self.written()

    async def stop(self) -> None:
        """Bring the files that are being written to their end, and begin no others.

        They come too late when another worker has this one's models: its files may be gone already,
        and these are put away again like those that nobody wants.
        """
        for key in list(self._unwritten)[1:]:
            del self._unwritten[key]
        if self._writing is not None:
            with contextlib.suppress(OSError):  # reported where it was written
                await self._writing

    async def _write_now(self) -> None:
        self.write()
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def _write_all(self) -> None:
        while self._unwritten:
            key, copy = next(iter(self._unwritten.items()))
            await self._write(copy)
            # The same save may have been handed over once more while it was written.
            if self._unwritten.get(key) is copy:
                del self._unwritten[key]
                await self._in_thread(self._engine.unpin, copy.folder)

    async def _write(self, copy: HandedOver) -> None:
        path, checkpoints = CheckpointPath.parse(copy.path), self._store.checkpoints
        # First: if we die with files written and nobody who wants them, a sweep finds them.
        await checkpoints.doom_files(copy.files, _CUT_OFF_S)
        if await self._is_wanted(copy) and not is_complete(copy.folder):
            await asyncio.to_thread(self._engine.write_frozen, copy.frozen, copy.folder)
        if await self._is_wanted(copy):
            await asyncio.to_thread(self._storage.delete_other_revisions, path, copy.files.revision)
        else:
            # Its session has ended, or a later save has taken its place.
            await asyncio.to_thread(self._storage.delete_revision, path, copy.files.revision)
        await checkpoints.files_deleted(copy.files)
        await self._store.handovers.end(copy.model_id, copy.seq_id)

    async def _is_wanted(self, copy: HandedOver) -> bool:
        checkpoint = await self._store.checkpoints.get(copy.path)
        return checkpoint is not None and checkpoint.revision == copy.files.revision


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        # Nothing is lost: they are sampled from memory, and the log is kept until they are written.
        _log.error("handed-over weights not written", reason=str(error))
