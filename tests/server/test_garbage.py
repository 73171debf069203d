"""What is garbage, and that freeing it frees exactly that; on real storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_core.storage import Storage
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from server.doubles.builders import ADMIN_KEY, KEY, MODEL, checkpoint, model_record
from server.doubles.store import StoreDouble

HOUR_S = 3600
UNKNOWN = "00000000-0000-4000-8000-00000000dead:train:0"


class Disk:
    """Real storage whose files are as old as a test says."""

    def __init__(self, root: Path, clock: ManualClock) -> None:
        self.storage = Storage(root)
        self._now_s = clock.now_ms() / 1000

    def revision(self, path: str, revision: str, age_s: float) -> Path:
        return self._made(self.storage.checkpoint_dir(CheckpointPath.parse(path), revision), age_s)

    def snapshot(self, model_id: str, seq_id: int, epoch: int, age_s: float) -> Path:
        return self._made(self.storage.snapshot_dir(model_id, seq_id, epoch), age_s)

    def _made(self, folder: Path, age_s: float) -> Path:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
        at_s = self._now_s - age_s
        for each in (*folder.iterdir(), folder):
            os.utime(each, (at_s, at_s))
        return folder


@pytest.fixture
def disk(tmp_path: Path, clock: ManualClock) -> Disk:
    clock.advance(30 * 24 * HOUR_S)
    return Disk(tmp_path, clock)


@pytest.fixture
def app(settings: Settings, store: StoreDouble, disk: Disk, clock: ManualClock) -> FastAPI:
    return create_app(settings, store, disk.storage, clock)


@pytest.fixture
def admin(client: httpx.AsyncClient) -> httpx.AsyncClient:
    client.headers["X-API-Key"] = ADMIN_KEY
    return client


async def collected(admin: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await admin.post("/admin/v1/garbage", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(report: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(row["kind"], row["name"], row["num_bytes"]) for row in report["garbage"]]


async def test_a_real_run_frees_exactly_what_a_dry_run_told(
    admin: httpx.AsyncClient, store: StoreDouble, disk: Disk, clock: ManualClock
) -> None:
    old = 25 * HOUR_S
    kept = store.checkpoints.put(checkpoint("kept", revision="2"))
    expired = store.checkpoints.put(checkpoint("expired", expires_at_ms=clock.now_ms() - 1))
    lost = store.checkpoints.put(checkpoint("lost"))
    files = [
        disk.revision(kept.path, "2", old),
        disk.revision(kept.path, "1", old),
        disk.revision(expired.path, "0", old),
        disk.revision(f"tinker://{UNKNOWN}/weights/a", "7", old),
        disk.snapshot(MODEL, 5, 1, old),
        disk.snapshot(MODEL, 4, 1, old),
        disk.snapshot(UNKNOWN, 1, 1, old),
    ]
    store.models.records[MODEL] = model_record(snapshot_seq_id=5, snapshot_epoch=1)

    told = await collected(admin)
    assert all(each.exists() for each in files)
    assert lost.path in store.checkpoints.records
    freed = await collected(admin, dry_run=False, digest=told["digest"])

    assert names(told) == [
        ("expired_checkpoint", expired.path, 100),
        ("files_without_record", f"{kept.path} 1", 100),
        ("files_without_record", f"tinker://{UNKNOWN}/weights/a 7", 100),
        ("record_without_files", lost.path, 0),
        ("snapshot", f"{MODEL}/4-1", 100),
        ("snapshot", f"{UNKNOWN}/1-1", 100),
    ]
    assert (told["num"], told["num_bytes"]) == (6, 500)
    assert told["totals"]["snapshot"] == {"num": 2, "num_bytes": 200}
    assert names(freed) == names(told)
    assert [each.exists() for each in files] == [True, False, False, False, True, False, False]
    assert list(store.checkpoints.records) == [kept.path]
    assert [(owner, each.event) for owner, each in store.audit.entries] == [("", "garbage_collect")]
    assert (await collected(admin))["garbage"] == []


async def test_what_is_younger_than_the_grace_is_left_alone(
    admin: httpx.AsyncClient, store: StoreDouble, disk: Disk, clock: ManualClock
) -> None:
    disk.revision(f"tinker://{MODEL}/weights/a", "1", 2 * HOUR_S)
    disk.snapshot(UNKNOWN, 1, 1, 2 * HOUR_S)
    store.checkpoints.put(checkpoint("b", created_at_ms=clock.now_ms() - 2 * HOUR_S * 1000))

    assert (await collected(admin, grace_s=3 * HOUR_S))["num"] == 0
    assert (await collected(admin, grace_s=HOUR_S))["num"] == 3


async def test_what_is_in_use_is_no_garbage_however_old(
    admin: httpx.AsyncClient, store: StoreDouble, disk: Disk
) -> None:
    old = 100 * HOUR_S
    hidden = checkpoint("hidden", CheckpointKind.SAMPLER, is_listed=False)
    in_memory = checkpoint("memory", CheckpointKind.SAMPLER, is_listed=False)
    uploading = f"tinker://{UNKNOWN}/sampler_weights/up"
    for each in (hidden, in_memory):
        store.checkpoints.put(each)
    store.inventory.in_memory = {in_memory.path}
    store.inventory.writing = {CheckpointFiles(uploading, "9")}
    disk.revision(hidden.path, "0", old)
    disk.revision(uploading, "9", old)
    disk.snapshot(MODEL, 3, 2, old)
    store.models.records[MODEL] = model_record(snapshot_seq_id=1, snapshot_epoch=1, is_ended=True)

    assert (await collected(admin))["garbage"] == []


async def test_a_copy_is_as_young_as_its_links(
    admin: httpx.AsyncClient, disk: Disk, clock: ManualClock
) -> None:
    """Hard links keep the time of their source; their folder is new."""
    folder = disk.revision(f"tinker://{MODEL}/weights/copy", "1", 100 * HOUR_S)
    now_s = clock.now_ms() / 1000
    os.utime(folder, (now_s, now_s))

    assert (await collected(admin))["garbage"] == []


async def test_other_garbage_than_was_looked_at_is_not_freed(
    admin: httpx.AsyncClient, disk: Disk
) -> None:
    first = disk.revision(f"tinker://{UNKNOWN}/weights/a", "1", 100 * HOUR_S)
    told = await collected(admin)
    disk.revision(f"tinker://{UNKNOWN}/weights/b", "1", 100 * HOUR_S)

    body = {"dry_run": False, "digest": told["digest"]}
    answer = await admin.post("/admin/v1/garbage", json=body)

    assert answer.status_code == 400
    assert first.exists()


async def test_what_was_renewed_meanwhile_is_not_freed(
    admin: httpx.AsyncClient, store: StoreDouble, disk: Disk, clock: ManualClock
) -> None:
    record = store.checkpoints.put(checkpoint("a", expires_at_ms=clock.now_ms() - 1))
    folder = disk.revision(record.path, "0", 100 * HOUR_S)
    drop = store.checkpoints.drop

    async def renewed(checkpoint: Checkpoint, action: str, by: str) -> bool:
        await store.checkpoints.set_expiry(record.path, None)
        return await drop(checkpoint, action, by)

    store.checkpoints.drop = renewed
    freed = await collected(admin, dry_run=False)

    assert freed["num"] == 0
    assert folder.exists()


@pytest.mark.parametrize("body", [{"grace_s": 10}, {"digest": "x"}, {"dry_run": "maybe"}, {"x": 1}])
async def test_a_body_that_cannot_be_is_refused(
    admin: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    assert (await admin.post("/admin/v1/garbage", json=body)).status_code == 422


async def test_a_tenant_cannot_look(client: httpx.AsyncClient) -> None:
    client.headers["X-API-Key"] = KEY
    assert (await client.post("/admin/v1/garbage", json={})).status_code == 403
