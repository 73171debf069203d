"""Keys that are bound to a project: what they open is there, and what they list is of it."""

from __future__ import annotations

import dataclasses

import httpx
import pytest

from cyclora_core import ids
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import OperationKind
from cyclora_core.records import Future, FutureState, SamplingSession, Session
from server.doubles.builders import BASE, KEY, TENANT, checkpoint, model_record
from server.doubles.store import StoreDouble

SESSIONS = {
    "alpha": "00000000-0000-4000-8000-0000000000a1",
    "beta": "00000000-0000-4000-8000-0000000000b1",
}


@pytest.fixture(autouse=True)
def bound(store: StoreDouble) -> None:
    """Tenant A has a session, a run and a checkpoint in each project; its key is of alpha."""
    for project_id, session_id in SESSIONS.items():
        run = ids.model_id(session_id, 0)
        store.sessions.records[session_id] = Session(
            session_id, TENANT, 1000, 1000, project_id=project_id
        )
        store.models.records[run] = model_record(model_id=run, session_id=session_id)
        path = CheckpointPath(run, CheckpointKind.SAMPLER, "final")
        store.checkpoints.put(
            dataclasses.replace(
                checkpoint(kind=path.kind), path=str(path), model_id=run, num_bytes=7
            )
        )
    store.api_keys.change(KEY, project_id="alpha")


async def test_a_session_is_in_the_keys_project_whether_it_was_named_or_not(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    for body in ({}, {"project_id": "alpha"}):
        answer = await client.post("/api/v1/create_session", json=body)
        assert store.sessions.records[answer.json()["session_id"]].project_id == "alpha"


async def test_another_project_is_refused(client: httpx.AsyncClient) -> None:
    mine = f"/api/v1/sessions/{SESSIONS['alpha']}/project"
    answers = [
        await client.post("/api/v1/create_session", json={"project_id": "beta"}),
        await client.put(mine, json={"project_id": "beta"}),
        await client.get("/api/v1/training_runs?project_id=beta"),
        await client.post(
            "/api/v1/copy_weights",
            json={
                "source_path": f"tinker://{SESSIONS['alpha']}:train:0/sampler_weights/final",
                "destination_project_id": "beta",
            },
        ),
    ]

    for answer in answers:
        assert answer.status_code == 403
        assert "alpha" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/sessions",
        "/api/v1/training_runs",
        "/api/v1/training_runs?access_scope=accessible",
        "/api/v1/checkpoints",
        "/v1/models",
    ],
)
async def test_lists_hold_what_is_in_the_project(client: httpx.AsyncClient, path: str) -> None:
    text = (await client.get(path)).text

    assert SESSIONS["alpha"] in text
    assert SESSIONS["beta"] not in text


async def test_a_search_finds_what_is_in_the_project(client: httpx.AsyncClient) -> None:
    text = (await client.post("/api/v1/sessions/search", json={})).text

    assert SESSIONS["alpha"] in text
    assert SESSIONS["beta"] not in text


async def test_pages_count_what_is_in_the_project(client: httpx.AsyncClient) -> None:
    first = (await client.get("/api/v1/checkpoints?limit=1")).json()
    second = (await client.get("/api/v1/checkpoints?limit=1&offset=1")).json()

    assert len(first["checkpoints"]) == first["cursor"]["total_count"] == 1
    assert second["checkpoints"] == []
    assert (await client.get("/api/v1/sessions?offset=1")).json()["sessions"] == []


async def test_what_is_published_is_open_to_every_key(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    path = f"tinker://{SESSIONS['beta']}:train:0/sampler_weights/final"
    hidden = await client.post("/api/v1/weights_info", json={"tinker_path": path})
    record = store.checkpoints.records[path]
    store.checkpoints.records[path] = dataclasses.replace(record, is_public=True)
    shown = await client.post("/api/v1/weights_info", json={"tinker_path": path})

    assert (hidden.status_code, shown.status_code) == (404, 200)


async def test_a_copy_belongs_to_the_keys_project(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    source = f"tinker://{SESSIONS['alpha']}:train:0/sampler_weights/final"
    answer = await client.post("/api/v1/copy_weights", json={"source_path": source})

    assert answer.status_code == 200
    run = answer.json()["tinker_path"].split("/")[2]
    assert store.models.records[run].project_id == "alpha"


async def test_the_same_idempotency_key_finds_nothing_of_another_project(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    headers = {"X-Idempotency-Key": "once"}
    created: list[str] = []
    for project_id in ("alpha", "beta", None):
        store.api_keys.change(KEY, project_id=project_id)
        answer = await client.post("/api/v1/create_session", json={}, headers=headers)
        created.append(answer.json()["session_id"])

    assert len(set(created)) == 3


@pytest.mark.parametrize("project_id", ["alpha", "default"])
async def test_samples_of_the_openai_routes_are_of_no_project_that_a_bound_key_can_ask(
    client: httpx.AsyncClient, store: StoreDouble, project_id: str
) -> None:
    """Their ids follow from the names of tenant and model; keys of all projects draw there."""
    session_id = "99999999-2222-3333-4444-555555555555"
    sampler = ids.sampling_session_id(session_id, 0)
    record = SamplingSession(sampler, TENANT, session_id, BASE.name, None, None, 1000)
    store.sampling.records[sampler] = record
    request_id = f"{sampler}:7"
    store.futures.records[request_id] = Future(
        request_id, TENANT, sampler, 7, OperationKind.SAMPLE, FutureState.PENDING
    )
    store.api_keys.change(KEY, project_id=project_id)

    answers = [
        await client.post("/api/v1/retrieve_future", json={"request_id": request_id}),
        await client.post("/api/v1/cancel_future", json={"request_id": request_id}),
        await client.get(f"/api/v1/samplers/{sampler}"),
    ]

    assert [each.status_code for each in answers] == [404, 404, 404]
