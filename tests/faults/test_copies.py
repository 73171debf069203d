"""A copy whose server dies at any moment is made once, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoraConfig
from cyclora_core.records import Checkpoint
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.store.checkpoints import Checkpoints
from cyclora_core.store.copies import Copies
from cyclora_server.app import create_app
from cyclora_server.routes.copies import UNFINISHED_KEPT_S
from cyclora_server.settings import Settings
from cyclora_server.sweep import Sweeper

SOURCE = CheckpointPath(
    "11111111-2222-3333-4444-555555555555:train:0", CheckpointKind.TRAINING, "source"
)
FILES = {"adapter_model.safetensors": b"weights", "optimizer.safetensors": b"moments"}


class Killed(Exception):
    """Stands for a SIGKILL: nothing of the server's code is ready for it."""


@dataclass
class Server:
    """One server over a real store and a real folder, with one tenant and its checkpoint."""

    app: FastAPI
    client: httpx.AsyncClient
    store: Store
    storage: Storage
    tenant_id: str

    async def copy(self, key: str = "once") -> httpx.Response:
        body = {"source_path": str(SOURCE), "destination_project_id": "proj"}
        headers = {"X-Idempotency-Key": key}
        return await self.client.post("/api/v1/copy_weights", json=body, headers=headers)

    async def sweep(self) -> None:
        await Sweeper(self.app.state.services).sweep()

    async def check(self, path: str) -> None:
        """The copy is listed once, and has all of the source's files."""
        copy = await self.store.checkpoints.get(path)
        assert copy is not None
        runs, total = await self.store.runs.list(self.tenant_id, 0, 10)
        assert ([run.model_id for run in runs], total) == ([copy.model_id], 1)
        folder = self.storage.checkpoint_dir(CheckpointPath.parse(path), copy.revision)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES


@pytest.fixture
async def server(store: Store, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Server]:
    storage = Storage(tmp_path)
    tenant = await store.tenants.create("lab")
    key, _ = await store.api_keys.create(tenant.tenant_id, "laptop")
    folder = storage.checkpoint_dir(SOURCE, "3")
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    await store.checkpoints.put(
        Checkpoint(
            path=str(SOURCE),
            tenant_id=tenant.tenant_id,
            model_id=SOURCE.model_id,
            kind=SOURCE.kind,
            name=SOURCE.name,
            base_model="test/base",
            lora=LoraConfig(8),
            has_optimizer=True,
            num_bytes=14,
            created_at_ms=1,
            revision="3",
        )
    )
    app = create_app(
        Settings(storage_url=str(tmp_path), min_free_disk_bytes=0), store, storage, clock
    )
    transport = httpx.ASGITransport(app)
    headers = {"X-API-Key": key}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client,
    ):
        yield Server(app, client, store, storage, tenant.tenant_id)


def then_killed(real: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, after which the process is gone."""
    if not inspect.iscoroutinefunction(real):

        def blocking(*args: Any) -> None:
            real(*args)
            raise Killed

        return blocking

    async def awaited(*args: Any) -> None:
        await real(*args)
        raise Killed

    return awaited


@pytest.mark.parametrize(
    "last_step",
    [
        (Checkpoints, "doom_files"),
        (Storage, "copy_revision"),
        (Copies, "record"),
    ],
    ids=["before its files", "before its record", "before its answer"],
)
async def test_a_repeated_copy_finishes_or_finds_what_a_dead_server_began(
    server: Server,
    clock: ManualClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last_step: tuple[type, str],
) -> None:
    owner, name = last_step
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, then_killed(getattr(owner, name)))
        assert (await server.copy()).status_code == 500

    answers = [await server.copy() for _ in range(2)]

    paths = {answer.json()["tinker_path"] for answer in answers}
    assert len(paths) == 1
    path = paths.pop()
    await server.check(path)
    clock.advance(UNFINISHED_KEPT_S)
    await server.sweep()
    await server.check(path)
    files = [file for file in (tmp_path / "checkpoints").rglob("*") if file.is_file()]
    assert len(files) == 2 * len(FILES)


async def test_a_copy_that_is_never_asked_for_again_leaves_no_files(
    server: Server, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "copy_revision", then_killed(Storage.copy_revision))
    await server.copy()
    clock.advance(UNFINISHED_KEPT_S)

    await server.sweep()

    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == [SOURCE.model_id]


async def test_copies_asked_for_at_once_under_one_key_are_one(server: Server) -> None:
    answers = await asyncio.gather(*(server.copy() for _ in range(8)))

    assert {answer.status_code for answer in answers} == {200}
    [path] = {answer.json()["tinker_path"] for answer in answers}
    await server.check(path)
