"""What a server that is short of memory or disk refuses, and what it goes on doing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core import ids
from cyclora_core.operations import OptimStepResult
from cyclora_core.store.memory import MemoryReading
from cyclora_server.settings import Settings
from server.doubles.builders import ADMIN_KEY, MODEL, SAMPLER, SESSION, checkpoint, pending
from server.doubles.store import StoreDouble
from server.routes.test_sampling import sdk_sample
from server.routes.test_training import CREATE, PROTOBUF, STEP, pass_bytes

LOAD = checkpoint("state")
CREATING_LOAD = {
    "session_id": SESSION,
    "model_seq_id": 4,
    "path": LOAD.path,
    "optimizer": True,
    "base_model": LOAD.base_model,
    "optimizer_config": {"type": "adamw"},
}


def posted(route: str, body: dict[str, Any]) -> httpx.Request:
    return httpx.Request("POST", f"http://server/api/v1/{route}", json=body)


NEW_WORK = {
    "create_model": posted("create_model", CREATE),
    "forward_backward": httpx.Request(
        "POST",
        "http://server/api/v1/forward_backward",
        content=pass_bytes(1, 2),
        headers=PROTOBUF,
    ),
    "forward": posted("forward", {"model_id": MODEL, "seq_id": 1, "forward_input": {}}),
    "optim_step": posted("optim_step", STEP),
    "save_weights": posted("save_weights", {"model_id": MODEL, "seq_id": 1, "path": "a"}),
    "save_weights_for_sampler": posted(
        "save_weights_for_sampler", {"model_id": MODEL, "seq_id": 1, "path": "a"}
    ),
    "load_weights": posted(
        "load_weights", {"model_id": MODEL, "seq_id": 1, "path": LOAD.path, "optimizer": True}
    ),
    "creating load_weights": posted("load_weights", CREATING_LOAD),
    "asample": posted("asample", sdk_sample()),
}

STILL_ANSWERED = {
    "unload_model": posted("unload_model", {"model_id": MODEL}),
    "retrieve_future": posted("retrieve_future", {"request_id": f"{MODEL}:1"}),
    "session_heartbeat": posted("session_heartbeat", {"session_id": SESSION}),
    "finish": posted(f"sessions/{SESSION}/finish", {"reason": {"type": "success"}}),
    "create_session": posted("create_session", {"sdk_version": "1", "tags": []}),
    "get_info": posted("get_info", {"model_id": MODEL}),
    "delete": httpx.Request(
        "DELETE", f"http://server/api/v1/training_runs/{MODEL}/checkpoints/weights/state"
    ),
    "healthz": httpx.Request("GET", "http://server/api/v1/healthz"),
}


async def fill(app: FastAPI, store: StoreDouble, percent: int) -> None:
    limit_bytes = store.memory.reading.limit_bytes
    store.memory.reading = MemoryReading(limit_bytes * percent // 100, limit_bytes)
    await app.state.services.capacity.measure()


async def send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    headers = {**client.headers, **request.headers}
    method, content = request.method, request.content
    return await client.request(method, request.url, content=content, headers=headers)


@pytest.fixture(autouse=True)
def known(store: StoreDouble) -> None:
    store.checkpoints.put(LOAD)
    store.futures.records[f"{MODEL}:1"] = pending(f"{MODEL}:1")
    store.futures.settle(f"{MODEL}:1", OptimStepResult({}))


@pytest.mark.parametrize("name", NEW_WORK)
async def test_new_work_is_refused_with_a_429_and_leaves_no_trace(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble, name: str
) -> None:
    await fill(app, store, 85)

    answer = await send(client, NEW_WORK[name])

    assert answer.status_code == 429
    assert "memory would be 85% full" in answer.json()["detail"]
    assert store.operations.submissions == {}


@pytest.mark.parametrize("name", NEW_WORK)
async def test_the_same_request_is_accepted_once_there_is_room(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble, name: str
) -> None:
    await fill(app, store, 85)
    await send(client, NEW_WORK[name])
    await fill(app, store, 50)

    answer = await send(client, NEW_WORK[name])

    assert answer.status_code == 200
    assert list(store.operations.submissions) == [answer.json()["request_id"]]


@pytest.mark.parametrize("name", STILL_ANSWERED)
async def test_what_finishes_deletes_or_looks_goes_on(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble, name: str
) -> None:
    await fill(app, store, 99)

    answer = await send(client, STILL_ANSWERED[name])

    assert answer.status_code == 200


async def test_a_request_that_accepted_ones_wait_for_is_let_in(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble
) -> None:
    """Refusing it would keep them in the store for ever."""
    store.gaps.awaited = {(MODEL, 2)}
    await fill(app, store, 85)

    awaited = await client.post("/api/v1/optim_step", json=STEP)
    later = await client.post("/api/v1/optim_step", json=STEP | {"seq_id": 3})

    assert (awaited.status_code, later.status_code) == (200, 429)
    assert list(store.operations.submissions) == [ids.request_id(MODEL, 2)]


async def test_even_an_awaited_request_is_refused_before_the_store_is_full(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble
) -> None:
    store.gaps.awaited = {(MODEL, 2)}
    await fill(app, store, 95)

    assert (await client.post("/api/v1/optim_step", json=STEP)).status_code == 429


class TestDisk:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(poll_hold_s=0.0, min_free_disk_bytes=2**60)

    async def test_too_little_disk_refuses_new_work_from_the_start(
        self, client: httpx.AsyncClient
    ) -> None:
        answer = await send(client, NEW_WORK["save_weights"])

        assert answer.status_code == 429
        assert "the disk for checkpoints has" in answer.json()["detail"]


async def test_administrators_see_the_room_and_why_work_is_refused(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble
) -> None:
    headers = {"X-API-Key": ADMIN_KEY}
    fine = (await client.get("/admin/v1/capacity", headers=headers)).json()
    await fill(app, store, 85)
    short = (await client.get("/admin/v1/capacity", headers=headers)).json()

    assert fine["shortage"] is None
    assert short["store_used_bytes"] == store.memory.reading.used_bytes
    assert "85% full" in short["shortage"]


async def test_sampling_sessions_can_still_be_read(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble
) -> None:
    await fill(app, store, 99)

    assert (await client.get(f"/api/v1/samplers/{SAMPLER}")).status_code == 200
