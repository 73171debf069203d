"""Reading a checkpoint that its owner may replace or delete at the same moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_core.storage import Storage
from cyclora_core.store import Store


async def read_checkpoint(
    store: Store, storage: Storage, path: str, read: Callable[[Checkpoint, Path], Awaitable[None]]
) -> None:
    """Hand a checkpoint's record and folder to ``read``, again if its files were replaced.

    The files of a revision are deleted once a save under the same name has put its own in their
    place: who had looked up the record just before finds some missing, and must look again.

    Raises:
        UserError: it was deleted or has expired, or ``read`` refuses the files that the record
            names.
        OSError: they cannot be read.
    """
    checkpoint = await _existing(store, path)
    while True:
        folder = storage.checkpoint_dir(CheckpointPath.parse(path), checkpoint.revision)
        try:
            return await read(checkpoint, folder)
        except (UserError, OSError):
            tried, checkpoint = checkpoint, await _existing(store, path)
            if checkpoint.revision == tried.revision:
                raise


async def _existing(store: Store, path: str) -> Checkpoint:
    checkpoint = await store.checkpoints.get(path)
    if checkpoint is None:
        raise UserError(f"checkpoint {path!r} was deleted or has expired")
    return checkpoint
