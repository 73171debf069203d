"""What takes space and is of no use to anybody: found, told, and freed.

Whatever is younger than a grace is left alone, since it may just be on its way: a save writes its
files before their record, a snapshot is recorded when it is complete. Files are listed before the
records are read, so what got its record in between is seen to have one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cyclora_core.ids import CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_core.storage import StoredRevision, StoredSnapshot
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.types import ModelRecord
from cyclora_server import access
from cyclora_server.services import Services

MIN_GRACE_S = 600
DEFAULT_GRACE_S = 24 * 3600


class GarbageKind(StrEnum):
    """Why something is of no use."""

    EXPIRED = "expired_checkpoint"
    """Its time is over, and no sweep has come by yet."""
    NO_FILES = "record_without_files"
    """A checkpoint that is listed and cannot be loaded."""
    NO_RECORD = "files_without_record"
    """A revision of a checkpoint that no record names: replaced, cut off, or never recorded."""
    SNAPSHOT = "snapshot"
    """Of a model that has ended or that nobody knows, or replaced by a newer one."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing that could go."""

    kind: GarbageKind
    name: str
    """The checkpoint's path, with the revision where files alone are meant; of a snapshot
    ``{model_id}/{seq_id}-{epoch}``."""
    tenant_id: str | None
    """None where no record says whose it was."""
    num_bytes: int
    checkpoint: Checkpoint | None = None
    revision: StoredRevision | None = None
    snapshot: StoredSnapshot | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was found in storage, and then in the store."""

    revisions: Sequence[StoredRevision]
    snapshots: Sequence[StoredSnapshot]
    checkpoints: Sequence[Checkpoint]
    models: Sequence[ModelRecord]
    handed_over: set[str]
    """Paths of checkpoints whose files are still to be written."""
    being_written: set[CheckpointFiles]


def judged(seen: Seen, now_ms: int, grace_s: float) -> list[Garbage]:
    """What of all this is garbage, in the order in which it is told and freed."""
    before_ms = now_ms - round(grace_s * 1000)
    found = [*_records(seen, now_ms, before_ms), *_files(seen, before_ms)]
    found += _snapshots(seen, before_ms)
    return sorted(found, key=lambda each: (each.kind, each.name))


def _records(seen: Seen, now_ms: int, before_ms: int) -> Iterable[Garbage]:
    sizes = {(str(each.path), each.revision): each.num_bytes for each in seen.revisions}
    for record in seen.checkpoints:
        num_bytes = sizes.get((record.path, record.revision))
        if record.has_expired(now_ms):
            yield Garbage(
                GarbageKind.EXPIRED, record.path, record.tenant_id, num_bytes or 0, record
            )
        elif (
            not num_bytes
            and record.created_at_ms < before_ms
            and record.path not in seen.handed_over
            and CheckpointFiles(record.path, record.revision) not in seen.being_written
        ):
            yield Garbage(GarbageKind.NO_FILES, record.path, record.tenant_id, 0, record)


def _files(seen: Seen, before_ms: int) -> Iterable[Garbage]:
    recorded = {(each.path, each.revision) for each in seen.checkpoints}
    tenants = {each.model_id: each.tenant_id for each in seen.models}
    for each in seen.revisions:
        path = str(each.path)
        is_written = CheckpointFiles(path, each.revision) in seen.being_written
        if (path, each.revision) in recorded or is_written or each.changed_at_ms >= before_ms:
            continue
        yield Garbage(
            GarbageKind.NO_RECORD,
            f"{path} {each.revision}",
            tenants.get(each.path.model_id),
            each.num_bytes,
            revision=each,
        )


def _snapshots(seen: Seen, before_ms: int) -> Iterable[Garbage]:
    models = {each.model_id: each for each in seen.models}
    busy = {CheckpointPath.parse(path).model_id for path in seen.handed_over}
    for each in seen.snapshots:
        model = models.get(each.model_id)
        if each.changed_at_ms >= before_ms or each.model_id in busy:
            continue
        if (
            model is None
            or model.is_ended
            or each.place < (model.snapshot_seq_id, model.snapshot_epoch)
        ):
            name = f"{each.model_id}/{each.name}"
            tenant_id = model.tenant_id if model else None
            yield Garbage(GarbageKind.SNAPSHOT, name, tenant_id, each.num_bytes, snapshot=each)


def digest(garbage: Iterable[Garbage]) -> str:
    """Equal for equal garbage: by this, freeing can be held to what was looked at."""
    lines = (f"{each.kind} {each.name} {each.num_bytes}\n" for each in garbage)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


async def look(services: Services, grace_s: float) -> list[Garbage]:
    """All garbage there is now; changes nothing."""
    storage, inventory = services.storage, services.store.inventory
    revisions = await asyncio.to_thread(lambda: list(storage.revisions()))
    snapshots = await asyncio.to_thread(lambda: list(storage.snapshots()))
    # Of files that are being written somebody said so before, and takes it back with the record.
    being_written = await inventory.doomed_later()
    models = await inventory.runs(None)
    handed_over = await inventory.handed_over([each.model_id for each in models])
    checkpoints = await inventory.checkpoints(None, with_unlisted=True)
    seen = Seen(revisions, snapshots, checkpoints, models, handed_over, being_written)
    return await asyncio.to_thread(judged, seen, services.clock.now_ms(), grace_s)


async def free(services: Services, garbage: Sequence[Garbage], by: str) -> list[Garbage]:
    """Delete what was found, as far as it still is as it was; returns what is gone.

    ``by`` is the key_id of who asked.
    """
    return [each for each in garbage if await _free(services, each, by)]


async def _free(services: Services, each: Garbage, by: str) -> bool:
    checkpoints = services.store.checkpoints
    if each.checkpoint is not None:
        action = "expire" if each.kind is GarbageKind.EXPIRED else "delete"
        if not await checkpoints.drop(each.checkpoint, action, by):
            return False
        files = CheckpointFiles(each.checkpoint.path, each.checkpoint.revision)
        return await access.delete_files(services, files)
    if each.revision is not None:
        path, revision = each.revision.path, each.revision.revision
        record = await checkpoints.get(str(path))
        if record is not None and record.revision == revision:
            return False
        return await access.delete_files(services, CheckpointFiles(str(path), revision))
    assert each.snapshot is not None
    snapshot = each.snapshot
    return await asyncio.to_thread(
        services.storage.delete_snapshot, snapshot.model_id, snapshot.name
    )
