from __future__ import annotations

import httpx
import pytest
from tinker import types
from tinker.types.training_runs_response import TrainingRunsResponse

from cyclora_core import ids
from cyclora_core.ids import CheckpointKind
from server.doubles.builders import BASE, MODEL, SESSION, STRANGER_KEY, checkpoint, model_record
from server.doubles.store import StoreDouble

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


async def test_a_list_leaves_the_runs_of_one_project(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    copy = model_record(model_id=ids.model_id(SESSION, 1), project_id="proj", is_ended=True)
    store.models.records[copy.model_id] = copy

    answer = await client.get("/api/v1/training_runs", params={"project_id": "proj"})

    response = TrainingRunsResponse.model_validate(answer.json())
    assert [run.training_run_id for run in response.training_runs] == [copy.model_id]
    assert response.cursor.total_count == 1


async def test_anothers_published_run_is_listed_for_who_asks_for_it(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.models.records[MODEL] = model_record(user_metadata={"secret": "plan"})
    store.checkpoints.put(checkpoint("shared", is_public=True))
    store.checkpoints.put(checkpoint("private", created_at_ms=2000))
    headers = {"X-API-Key": STRANGER_KEY}
    seen: list[list[types.TrainingRun]] = []
    for scope in ("owned", "accessible"):
        params = {"access_scope": scope}
        answer = await client.get("/api/v1/training_runs", params=params, headers=headers)
        seen.append(TrainingRunsResponse.model_validate(answer.json()).training_runs)

    owned, [run] = seen
    assert owned == []
    assert run.user_metadata == {}
    assert run.last_request_time.timestamp() == 1.0
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.checkpoint_id == "weights/shared"


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 1001},
        {"offset": -1},
        {"offset": 2**60},
        {"limit": "many"},
        {"access_scope": "everyones"},
        {"project_id": ""},
    ],
)
async def test_a_page_that_cannot_be_is_refused(
    client: httpx.AsyncClient, params: dict[str, object]
) -> None:
    answer = await client.get("/api/v1/training_runs", params=params)  # type: ignore[arg-type]

    assert answer.status_code == 422
    assert next(iter(params)) in answer.json()["detail"]


async def test_a_run_moves_between_projects_with_its_session(client: httpx.AsyncClient) -> None:
    async def listed(project_id: str) -> list[str]:
        params = {"project_id": project_id}
        answer = await client.get("/api/v1/training_runs", params=params)
        return [run["training_run_id"] for run in answer.json()["training_runs"]]

    assert [await listed("default"), await listed("paper")] == [[MODEL], []]
    await client.put(f"/api/v1/sessions/{SESSION}/project", json={"project_id": "paper"})
    assert [await listed("default"), await listed("paper")] == [[], [MODEL]]
