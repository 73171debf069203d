"""Reading a checkpoint while a save under the same name replaces it, or its owner deletes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoraConfig
from cyclora_core.records import Checkpoint
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_workers.checkpoint_reads import read_checkpoint

MODEL = "11111111-2222-3333-4444-555555555555:train:0"
PATH = CheckpointPath(MODEL, CheckpointKind.TRAINING, "kept")


def revision(number: int) -> Checkpoint:
    return Checkpoint(
        path=str(PATH),
        tenant_id="tenant-a",
        model_id=MODEL,
        kind=PATH.kind,
        name=PATH.name,
        base_model="test/base",
        lora=LoraConfig(8),
        has_optimizer=True,
        num_bytes=10,
        created_at_ms=number,
        revision=str(number),
    )


class Reader:
    """Finds no files of the revisions it is told; meanwhile something happens to the record."""

    def __init__(self, store: Store, missing: set[str], then: Checkpoint | None) -> None:
        self._store = store
        self._missing = missing
        self._then = then
        self.tried: list[str] = []

    async def read(self, checkpoint: Checkpoint, folder: Path) -> None:
        assert folder.name == checkpoint.revision
        self.tried.append(checkpoint.revision)
        if checkpoint.revision not in self._missing:
            return
        if self._then is None:
            await self._store.checkpoints.delete(str(PATH))
        else:
            await self._store.checkpoints.put(self._then)
        raise UserError("files are missing")


async def test_files_that_were_replaced_while_they_were_read_are_looked_up_again(
    store: Store, tmp_path: Path
) -> None:
    await store.checkpoints.put(revision(3))
    reader = Reader(store, {"3"}, revision(9))

    await read_checkpoint(store, Storage(tmp_path), str(PATH), reader.read)

    assert reader.tried == ["3", "9"]


async def test_files_that_are_damaged_are_refused_once(store: Store, tmp_path: Path) -> None:
    await store.checkpoints.put(revision(3))
    reader = Reader(store, {"3"}, revision(3))

    with pytest.raises(UserError, match="files are missing"):
        await read_checkpoint(store, Storage(tmp_path), str(PATH), reader.read)

    assert reader.tried == ["3"]


async def test_a_checkpoint_that_is_deleted_while_it_is_read_is_named(
    store: Store, tmp_path: Path
) -> None:
    await store.checkpoints.put(revision(3))
    reader = Reader(store, {"3"}, None)

    with pytest.raises(UserError, match="weights/kept' was deleted or has expired"):
        await read_checkpoint(store, Storage(tmp_path), str(PATH), reader.read)
