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
