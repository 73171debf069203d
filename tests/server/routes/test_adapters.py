from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy as st
from fastapi import FastAPI

from cyclora_core import peft
from cyclora_core.clock import ManualClock
from cyclora_core.operations import LoraConfig
from cyclora_core.storage import Storage
from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from cyclora_server.sweep import Sweeper
from cyclora_server.uploads.receive import UNFINISHED_KEPT_S
from server.doubles.builders import BASE, KEY, MODULES, STRANGER_KEY, TENANT
from server.doubles.store import StoreDouble
from server.uploads.builders import RANK, config, tar, tensors, weights

ROUTE = "/api/v1/adapters"
PARAMS = {"base_model": BASE.name, "name": "mine"}
LIMIT_BYTES = 200_000


@pytest.fixture
def uploading(store: StoreDouble, clock: ManualClock, tmp_path: Path) -> FastAPI:
    settings = Settings(
        max_upload_bytes=LIMIT_BYTES, storage_url=str(tmp_path), min_free_disk_bytes=0
    )
    return create_app(settings, store, Storage(tmp_path), clock)


@pytest.fixture
async def client(uploading: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(uploading)
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://server", headers=headers
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, body: Any = None, **options: Any) -> httpx.Response:
    params = options.pop("params", PARAMS)
    return await client.post(ROUTE, params=params, content=body or tar(), **options)


def files(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


async def test_an_upload_becomes_a_training_checkpoint_in_a_run_of_its_own(
    client: httpx.AsyncClient, store: StoreDouble, tmp_path: Path
) -> None:
    answer = await post(client)

    assert answer.status_code == 200, answer.text
    path, run = answer.json()["tinker_path"], answer.json()["training_run_id"]
    assert path == f"tinker://{run}/weights/mine"
    record = store.checkpoints.records[path]
    assert record.tenant_id == TENANT
    assert record.lora == LoraConfig(RANK, train_unembed=False, lora_alpha=8.0)
    assert not record.has_optimizer
    assert store.models.records[run].is_ended
    assert store.checkpoints.doomed == []
    [folder] = {each.parent for each in tmp_path.rglob("adapter_config.json")}
    assert {each.name for each in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint_complete",
    }
    assert folder.name == record.revision
    assert record.num_bytes == sum(each.stat().st_size for each in folder.iterdir())
    assert json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] == 8
    ours = st.load_file(folder / "adapter_model.safetensors")
    assert len(ours) == 2 * 3  # of the groups attn and mlp, v_proj without an adapter among them
    name = peft.lora_B_name(MODULES[0].name)
    np.testing.assert_array_equal(ours[name], tensors()[name])


async def test_the_same_upload_sent_again_is_the_same_checkpoint(
    client: httpx.AsyncClient, store: StoreDouble, tmp_path: Path
) -> None:
    headers = {"X-Idempotency-Key": "once"}
    first = await post(client, headers=headers)
    kept = files(tmp_path)

    again = await post(client, headers=headers)
    other = await post(client, tar({"adapter_config.json": config(r=1)}), headers=headers)
    stranger = await post(client, headers={**headers, "X-API-Key": STRANGER_KEY})

    assert again.json() == first.json()
    assert other.status_code == 400
    assert "used before for another upload" in other.json()["detail"]
    assert stranger.json()["tinker_path"] != first.json()["tinker_path"]
    assert kept < files(tmp_path)
    assert len(store.checkpoints.records) == 2


async def test_of_two_attempts_side_by_side_one_is_recorded_and_the_other_leaves_nothing(
    client: httpx.AsyncClient, store: StoreDouble, tmp_path: Path
) -> None:
    headers = {"X-Idempotency-Key": "once"}
    data = tar()
    inner: list[httpx.Response] = []

    async def slow() -> AsyncGenerator[bytes]:
        yield data[:700]
        inner.append(await post(client, data, headers=headers))
        yield data[700:]

    outer = await post(client, slow(), headers=headers)

    assert outer.json() == inner[0].json()
    assert len(store.checkpoints.records) == 1
    assert len(files(tmp_path)) == 3
    assert store.checkpoints.doomed == []


async def test_a_server_that_dies_amid_an_upload_leaves_nothing_listed_and_no_files(
    client: httpx.AsyncClient,
    store: StoreDouble,
    uploading: FastAPI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own cleaning up does not happen; another server's sweep does."""
    data = tar({"adapter_model.safetensors": weights(3), "adapter_config.json": config()})
    doomed: list[Any] = []

    async def cut_off() -> AsyncGenerator[bytes]:
        yield data[:2500]
        doomed.extend(store.checkpoints.doomed)
        raise ConnectionError

    async def never(*_: object) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr("cyclora_server.access.delete_files", never)
        assert (await post(client, cut_off())).status_code == 500
    left = files(tmp_path)

    listed = (await client.get("/api/v1/checkpoints")).json()["checkpoints"]
    await Sweeper(uploading.state.services).sweep()

    assert len(left) == 1
    assert len(doomed) == 1
    assert listed == []
    assert not store.models.records.keys() - {"00000000-0000-4000-8000-000000000001:train:0"}
    assert files(tmp_path) == set()
    assert list((tmp_path / "checkpoints").iterdir()) == []


async def test_a_slow_upload_is_not_taken_for_a_dead_one(
    client: httpx.AsyncClient,
    store: StoreDouble,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tar({"adapter_config.json": config(), "adapter_model.safetensors": weights(3)})
    times: list[int] = []
    real = store.checkpoints.doom_files

    async def doomed(files: Any, after_s: float) -> None:
        times.append(clock.now_ms())
        assert after_s == UNFINISHED_KEPT_S
        await real(files, after_s)

    monkeypatch.setattr(store.checkpoints, "doom_files", doomed)

    async def slow() -> AsyncGenerator[bytes]:
        for start in range(0, len(data), 1024):
            clock.advance(61)
            yield data[start : start + 1024]

    assert (await post(client, slow())).status_code == 200

    assert max(after - before for before, after in itertools.pairwise(times)) <= 122_000
    assert len(times) > 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"x" * 5000, "is no tar"),
        (b"", "ends too early"),
        (tar({}), "holds no adapter_config.json"),
        (tar({"adapter_config.json": config()}), "holds no adapter_model.safetensors"),
        (tar({"adapter_model.safetensors": weights()}), "holds no adapter_config.json"),
        (tar({"../adapter_config.json": config()}), "holds '../adapter_config.json'"),
        (tar({"adapter_model.bin": b"pickle"}), "holds 'adapter_model.bin'"),
        (tar({"adapter_config.json": b" " * 150_000 + config()}), "holds no adapter_model"),
        (tar({"adapter_config.json": config(use_dora=True)}), "use_dora = true"),
        (
            tar({"adapter_config.json": config(), "adapter_model.safetensors": b"pickle"}),
            "no safetensors file",
        ),
        (
            tar({"adapter_config.json": config(r=4), "adapter_model.safetensors": weights()}),
            "the base model needs",
        ),
    ],
)
async def test_what_is_no_adapter_of_the_base_model_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, store: StoreDouble, tmp_path: Path, body: bytes, message: str
) -> None:
    async def stream() -> AsyncGenerator[bytes]:
        yield body

    answer = await post(client, stream())

    assert answer.status_code == 400
    assert message in answer.json()["detail"]
    assert store.checkpoints.records == {}
    assert store.checkpoints.doomed == []
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"name": "mine"}, 422),
        ({"base_model": "org/other"}, 404),
        ({"base_model": BASE.name, "name": "../mine"}, 400),
        ({"base_model": BASE.name, "name": "ephemeral-1"}, 400),
    ],
)
async def test_a_target_that_cannot_be_is_refused(
    client: httpx.AsyncClient, params: dict[str, str], status: int
) -> None:
    assert (await post(client, params=params)).status_code == status


async def test_an_adapter_larger_than_the_bound_is_refused_declared_or_not(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    large = tar({"adapter_model.safetensors": bytes(LIMIT_BYTES)})

    async def undeclared() -> AsyncGenerator[bytes]:
        yield large

    declared = await post(client, large)

    assert declared.status_code == 413
    assert (await post(client, undeclared())).status_code == 413
    assert files(tmp_path) == set()


async def test_compressed_bodies_are_refused(client: httpx.AsyncClient) -> None:
    answer = await post(client, headers={"Content-Encoding": "gzip"})

    assert answer.status_code == 400
    assert "'gzip' is not supported here" in answer.json()["detail"]


async def test_a_base_model_whose_workers_have_not_said_enough_is_waited_for(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.base_models.modules.clear()

    assert (await post(client)).status_code == 503


async def test_an_upload_that_finds_no_room_is_told_to_come_back(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "finish_revision", full)

    assert (await post(client)).status_code == 429
    assert files(tmp_path) == set()
