"""Workers drained and resumed, models loaded, unloaded and moved, over REST."""

from __future__ import annotations

import dataclasses

import httpx
import pytest

from cyclora_core.placement import Action, Wish
from server.doubles.builders import ADMIN_KEY, KEY, MODEL
from server.doubles.store import StoreDouble


@pytest.fixture
def admin(client: httpx.AsyncClient) -> httpx.AsyncClient:
    client.headers["X-API-Key"] = ADMIN_KEY
    return client


async def test_a_worker_is_drained_and_resumed(admin: httpx.AsyncClient) -> None:
    drained = await admin.post("/admin/v1/workers/worker-1/drain")
    (draining,) = (await admin.get("/admin/v1/workers")).json()["workers"]
    await admin.post("/admin/v1/workers/worker-1/resume")
    (resumed,) = (await admin.get("/admin/v1/workers")).json()["workers"]

    assert drained.status_code == 200
    assert (draining["is_draining"], draining["is_drained"]) == (True, True)
    assert (resumed["is_draining"], resumed["is_drained"]) == (False, False)


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_a_wish_for_a_model_is_noted_and_shown(admin: httpx.AsyncClient, action: str) -> None:
    assert (await admin.post(f"/admin/v1/models/{MODEL}/{action}")).status_code == 200

    (model,) = (await admin.get("/admin/v1/models")).json()["models"]
    assert (model["model_id"], model["wish"], model["place"]) == (MODEL, action, "storage")


async def test_a_model_moves_only_to_a_living_worker_of_its_base_model_that_serves(
    admin: httpx.AsyncClient, store: StoreDouble
) -> None:
    route, body = f"/admin/v1/models/{MODEL}/move", {"worker_id": "worker-1"}
    worker = store.workers.records[0]

    moved = await admin.post(route, json=body)
    wishes = dict(store.placements.wishes)
    nowhere = await admin.post(route, json={"worker_id": "nobody"})
    answers: list[httpx.Response] = []
    for changed in (
        dataclasses.replace(worker, is_alive=False),
        dataclasses.replace(worker, base_model="other/base"),
        dataclasses.replace(worker, is_draining=True),
    ):
        store.workers.records = [changed]
        answers.append(await admin.post(route, json=body))

    assert moved.status_code == 200
    assert wishes == {MODEL: Wish(Action.MOVE, "worker-1")}
    assert nowhere.status_code == 404
    assert [each.status_code for each in answers] == [404, 400, 400]
    assert "other/base" in answers[1].text
    assert "draining" in answers[2].text


@pytest.mark.parametrize(
    "route",
    [
        "workers/nobody/drain",
        "workers/nobody/resume",
        "models/nobody/load",
        "models/nobody/unload",
    ],
)
async def test_what_does_not_exist_is_not_found(admin: httpx.AsyncClient, route: str) -> None:
    assert (await admin.post(f"/admin/v1/{route}")).status_code == 404


@pytest.mark.parametrize("route", ["workers/worker-1/drain", f"models/{MODEL}/unload"])
async def test_only_administrators_act_on_workers_and_models(
    client: httpx.AsyncClient, route: str
) -> None:
    client.headers["X-API-Key"] = KEY

    assert (await client.post(f"/admin/v1/{route}")).status_code == 403
    assert (await client.get("/admin/v1/models")).status_code == 403
