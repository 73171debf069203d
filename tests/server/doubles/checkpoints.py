"""Checkpoints, copies of them, and the storage that holds their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_core.storage import StoredFile, StoredRevision, StoredSnapshot
from cyclora_core.store.checkpoints import CheckpointFiles
from server.doubles.builders import BASE, model_record
from server.doubles.models import Models


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

    async def drop(self, checkpoint: Checkpoint, action: str, by: str) -> bool:
        assert action in ("expire", "delete")
        if self.records.get(checkpoint.path) != checkpoint:
            return False
        return await self.delete(checkpoint.path, by) is not None

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
        if files in self.doomed:
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


class StorageDouble:
    """Files of one base model; remembers what was deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.files: dict[str, list[StoredFile]] = {}
        self.copied: list[tuple[str, str]] = []
        self.stored: list[StoredRevision] = []
        self.stored_snapshots: list[StoredSnapshot] = []
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

    def revisions(self) -> Iterator[StoredRevision]:
        return iter(self.stored)

    def snapshots(self) -> Iterator[StoredSnapshot]:
        return iter(self.stored_snapshots)

    def delete_snapshot(self, model_id: str, name: str) -> bool:
        self.deleted.append(f"{model_id}/{name}")
        return True

    def delete_revision(self, path: CheckpointPath, revision: str) -> bool:
        if self.is_stuck:
            return False
        assert revision
        self.deleted.append(str(path))
        return True
