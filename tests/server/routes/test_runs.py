from __future__ import annotations

import httpx
import pytest
from tinker import types
from tinker.types.training_runs_response import TrainingRunsResponse

from cyclora_core import ids
from cyclora_core.ids import CheckpointKind
from server.double import (
    BASE,
    MODEL,
    SESSION,
    STRANGER_KEY,
    StorageDouble,
    StoreDouble,
    checkpoint,
    model_record,
)

FINAL = f"/api/v1/training_runs/{MODEL}/checkpoints/weights/final"


async def test_the_sdk_understands_a_training_run(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint("old"))
    store.checkpoints.put(checkpoint("new"))
    store.checkpoints.put(checkpoint("only", CheckpointKind.SAMPLER))

    answer = await client.get(f"/api/v1/training_runs/{MODEL}?access_scope=owned")

    run = types.TrainingRun.model_validate(answer.json())
    assert run.training_run_id == MODEL
    assert run.base_model == BASE.name
    assert run.lora_rank == 8
    assert run.last_request_time.tzinfo is not None
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.checkpoint_id == "weights/new"
    assert run.last_sampler_checkpoint is not None
    assert run.last_sampler_checkpoint.checkpoint_id == "sampler_weights/only"


async def test_training_runs_are_listed_in_pages(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    other = ids.model_id(SESSION, 1)
    store.models.records[other] = model_record(model_id=other)

    answer = await client.get("/api/v1/training_runs", params={"limit": 1, "offset": 1})

    response = TrainingRunsResponse.model_validate(answer.json())
    assert [run.training_run_id for run in response.training_runs] == [MODEL]
    assert response.cursor.model_dump() == {"offset": 1, "limit": 1, "total_count": 2}


async def test_the_sdk_understands_a_checkpoint(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint(expires_at_ms=5_000_000, user_metadata={"a": "b"}))

    answer = await client.get(f"/api/v1/training_runs/{MODEL}/checkpoints")

    [listed] = types.CheckpointsListResponse.model_validate(answer.json()).checkpoints
    assert listed.checkpoint_id == "weights/final"
    assert listed.checkpoint_type == "training"
    assert listed.tinker_path == f"tinker://{MODEL}/weights/final"
    assert listed.size_bytes == 123
    assert listed.time.tzinfo is not None
    assert listed.expires_at is not None
    assert listed.user_metadata == {"a": "b"}


async def test_all_checkpoints_of_a_tenant_are_listed_newest_first(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    for name in ("old", "new"):
        store.checkpoints.put(checkpoint(name))

    answer = await client.get("/api/v1/checkpoints", params={"limit": 1000})

    response = types.CheckpointsListResponse.model_validate(answer.json())
    assert [each.checkpoint_id for each in response.checkpoints] == ["weights/new", "weights/old"]
    assert response.cursor is not None
    assert response.cursor.total_count == 2


async def test_deleting_a_checkpoint_removes_its_record_and_its_files(
    client: httpx.AsyncClient, store: StoreDouble, storage: StorageDouble
) -> None:
    path = store.checkpoints.put(checkpoint()).path

    answer = await client.delete(FINAL)

    assert answer.status_code == 200
    assert not store.checkpoints.records
    assert storage.deleted == [path]


async def test_deleting_a_checkpoint_twice_is_refused_the_second_time(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())
    await client.delete(FINAL)

    assert (await client.delete(FINAL)).status_code == 404


@pytest.mark.parametrize("name", [".hidden", "%2e%2e", "a%20b"])
async def test_a_name_that_is_no_checkpoints_never_reaches_storage(
    client: httpx.AsyncClient, storage: StorageDouble, name: str
) -> None:
    url = f"/api/v1/training_runs/{MODEL}/checkpoints/weights/{name}"

    answer = await client.delete(url)

    assert answer.status_code in (400, 404, 405)
    assert storage.deleted == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/v1/training_runs/{MODEL}"),
        ("GET", f"/api/v1/training_runs/{MODEL}/checkpoints"),
        ("DELETE", FINAL),
    ],
)
async def test_another_tenants_run_looks_missing(
    client: httpx.AsyncClient, store: StoreDouble, method: str, path: str
) -> None:
    store.checkpoints.put(checkpoint())

    answer = await client.request(method, path, headers={"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404
    assert len(store.checkpoints.records) == 1


async def test_lists_hold_nothing_of_other_tenants(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())
    headers = {"X-API-Key": STRANGER_KEY}

    runs = (await client.get("/api/v1/training_runs", headers=headers)).json()
    checkpoints = (await client.get("/api/v1/checkpoints", headers=headers)).json()

    assert runs["training_runs"] == []
    assert checkpoints["checkpoints"] == []
