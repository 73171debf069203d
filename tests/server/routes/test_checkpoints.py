from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tinker import types

from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind
from cyclora_server.sweep import Sweeper
from cyclora_server.validate import MAX_TTL_S, MIN_TTL_S
from server.doubles.builders import MODEL, SESSION, STRANGER, STRANGER_KEY, checkpoint, model_record
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble

FINAL = f"/api/v1/training_runs/{MODEL}/checkpoints/weights/final"
PATH = f"tinker://{MODEL}/weights/final"
STRANGE = {"X-API-Key": STRANGER_KEY}


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


async def test_a_deletion_that_was_cut_off_is_finished_by_the_next_sweep(
    client: httpx.AsyncClient, app: FastAPI, store: StoreDouble, storage: StorageDouble
) -> None:
    path = store.checkpoints.put(checkpoint()).path
    storage.is_stuck = True
    assert (await client.delete(FINAL)).status_code == 200
    await Sweeper(app.state.services).sweep()
    assert store.checkpoints.doomed
    storage.is_stuck = False

    await Sweeper(app.state.services).sweep()

    assert storage.deleted == [path]
    assert not store.checkpoints.doomed


async def test_an_expired_checkpoint_goes_with_its_files_and_the_others_stay(
    app: FastAPI, store: StoreDouble, storage: StorageDouble
) -> None:
    gone = store.checkpoints.put(checkpoint("gone", expires_at_ms=10_000)).path
    kept = store.checkpoints.put(checkpoint("kept", expires_at_ms=10_001)).path

    await Sweeper(app.state.services).sweep()

    assert list(store.checkpoints.records) == [kept]
    assert storage.deleted == [gone]


@pytest.mark.parametrize("ttl_s", [MIN_TTL_S, MAX_TTL_S])
async def test_a_checkpoint_lives_as_long_as_asked_from_now_on(
    client: httpx.AsyncClient, store: StoreDouble, clock: ManualClock, ttl_s: int
) -> None:
    store.checkpoints.put(checkpoint(expires_at_ms=50_000))

    answer = await client.put(f"{FINAL}/ttl", json={"ttl_seconds": ttl_s})

    assert answer.status_code == 200
    assert store.checkpoints.records[PATH].expires_at_ms == clock.now_ms() + ttl_s * 1000


async def test_a_null_makes_a_checkpoint_live_for_ever(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint(expires_at_ms=50_000))

    assert (await client.put(f"{FINAL}/ttl", json={"ttl_seconds": None})).status_code == 200

    assert store.checkpoints.records[PATH].expires_at_ms is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"ttl_seconds": MIN_TTL_S - 1}, 400),
        ({"ttl_seconds": MAX_TTL_S + 1}, 400),
        ({"ttl_seconds": -1}, 400),
        ({"ttl_seconds": 10**30}, 400),
        ({"ttl_seconds": "soon"}, 422),
        ({"ttl_seconds": 3600.5}, 422),
        ({}, 422),
        ([], 422),
    ],
)
async def test_a_lifetime_out_of_bounds_changes_nothing(
    client: httpx.AsyncClient, store: StoreDouble, body: object, status: int
) -> None:
    store.checkpoints.put(checkpoint(expires_at_ms=50_000))

    answer = await client.put(f"{FINAL}/ttl", json=body)

    assert answer.status_code == status
    assert store.checkpoints.records[PATH].expires_at_ms == 50_000


async def test_publishing_and_taking_back_can_each_be_repeated(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())
    seen: list[tuple[int, bool]] = []
    for method in ("POST", "POST", "DELETE", "DELETE"):
        answer = await client.request(method, f"{FINAL}/publish")
        [listed] = (await client.get("/api/v1/checkpoints")).json()["checkpoints"]
        seen.append((answer.status_code, listed["public"]))

    assert seen == [(200, True), (200, True), (200, False), (200, False)]


@pytest.mark.parametrize("is_public", [False, True])
@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("DELETE", FINAL),
        ("POST", f"{FINAL}/publish"),
        ("DELETE", f"{FINAL}/publish"),
        ("PUT", f"{FINAL}/ttl"),
    ],
)
async def test_only_its_owner_changes_a_checkpoint_published_or_not(
    client: httpx.AsyncClient, store: StoreDouble, method: str, url: str, is_public: bool
) -> None:
    before = store.checkpoints.put(checkpoint(is_public=is_public))

    answer = await client.request(method, url, json={"ttl_seconds": None}, headers=STRANGE)

    assert answer.status_code == 404
    assert answer.json()["detail"] == f"checkpoint {PATH!r} does not exist or has expired"
    assert store.checkpoints.records[PATH] == before


@pytest.mark.parametrize(
    ("method", "url"),
    [("DELETE", FINAL), ("POST", f"{FINAL}/publish"), ("PUT", f"{FINAL}/ttl")],
)
@pytest.mark.parametrize("changes", [{"expires_at_ms": 10_000}, {"is_listed": False}])
async def test_what_has_expired_or_has_no_name_cannot_be_changed(
    client: httpx.AsyncClient,
    store: StoreDouble,
    method: str,
    url: str,
    changes: dict[str, Any],
) -> None:
    store.checkpoints.put(checkpoint(**changes))

    answer = await client.request(method, url, json={"ttl_seconds": None})

    assert answer.status_code == 404


async def test_a_stranger_sees_of_a_run_what_is_published_and_nothing_else(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.models.records[MODEL] = model_record(user_metadata={"secret": "plan"})
    store.checkpoints.put(checkpoint("private"))
    run = f"/api/v1/training_runs/{MODEL}"
    accessible = {"access_scope": "accessible"}
    hidden = [
        await client.get(f"{run}/checkpoints", headers=STRANGE),
        await client.get(run, params=accessible, headers=STRANGE),
    ]
    store.checkpoints.put(checkpoint("shared", is_public=True))
    store.checkpoints.put(checkpoint("over", is_public=True, expires_at_ms=10_000))

    listed = await client.get(f"{run}/checkpoints", headers=STRANGE)
    seen = await client.get(run, params=accessible, headers=STRANGE)
    as_own = await client.get(run, headers=STRANGE)

    assert [answer.status_code for answer in [*hidden, as_own]] == [404, 404, 404]
    names = [each["checkpoint_id"] for each in listed.json()["checkpoints"]]
    assert names == ["weights/shared"]
    assert types.TrainingRun.model_validate(seen.json()).user_metadata == {}
    assert "private" not in seen.text


async def test_a_stranger_loads_samples_and_reads_what_is_published(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint(is_public=True))
    session = await client.post("/api/v1/create_session", json={}, headers=STRANGE)
    session_id = session.json()["session_id"]
    load = {"session_id": session_id, "model_seq_id": 0, "path": PATH, "optimizer": True}
    sample = {"session_id": session_id, "sampling_session_seq_id": 1, "model_path": PATH}

    answers = [
        await client.post("/api/v1/load_weights", json=load, headers=STRANGE),
        await client.post("/api/v1/create_sampling_session", json=sample, headers=STRANGE),
        await client.post("/api/v1/weights_info", json={"tinker_path": PATH}, headers=STRANGE),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert store.models.records[f"{session_id}:train:0"].tenant_id == STRANGER
    assert SESSION not in session_id


async def test_weights_that_were_taken_back_are_not_sampled_by_strangers_any_more(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint(kind=CheckpointKind.SAMPLER, is_public=True))
    path = f"tinker://{MODEL}/sampler_weights/final"
    session = await client.post("/api/v1/create_session", json={}, headers=STRANGE)
    opened = await client.post(
        "/api/v1/create_sampling_session",
        json={**session.json(), "sampling_session_seq_id": 1, "model_path": path},
        headers=STRANGE,
    )
    body = {
        "sampling_session_id": opened.json()["sampling_session_id"],
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        "sampling_params": {"max_tokens": 2},
    }
    before = await client.post("/api/v1/asample", json=body | {"seq_id": 1}, headers=STRANGE)
    await store.checkpoints.set_public(path, False)
    after = await client.post("/api/v1/asample", json=body | {"seq_id": 2}, headers=STRANGE)

    assert store.submitted(before.json()["request_id"]).error is None
    error = store.submitted(after.json()["request_id"]).error
    assert error is not None
    assert "does not exist or has expired" in error.message


@pytest.mark.parametrize(
    ("version", "is_shown"),
    [
        ("0.24.1", False),
        ("0.28.9", False),
        ("0.29.0", True),
        ("0.38.0", True),
        ("1.0.0", True),
        (None, True),
        ("nightly", True),
    ],
)
async def test_external_checkpoints_are_shown_to_sdks_that_know_them(
    client: httpx.AsyncClient, store: StoreDouble, version: str | None, is_shown: bool
) -> None:
    store.checkpoints.put(checkpoint("kept"))
    store.checkpoints.put(checkpoint("exported", CheckpointKind.EXTERNAL))
    headers = {"X-Stainless-Package-Version": version} if version else {}

    of_run = await client.get(f"/api/v1/training_runs/{MODEL}/checkpoints", headers=headers)
    mine = await client.get("/api/v1/checkpoints", headers=headers)

    expected = {"training"} | ({"external"} if is_shown else set())
    for answer in (of_run, mine):
        found = types.CheckpointsListResponse.model_validate(answer.json()).checkpoints
        assert {each.checkpoint_type for each in found} == expected
    assert mine.json()["cursor"]["total_count"] == len(expected)


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 1001}, {"offset": -1}])
async def test_a_page_that_cannot_be_is_refused(
    client: httpx.AsyncClient, params: dict[str, int]
) -> None:
    assert (await client.get("/api/v1/checkpoints", params=params)).status_code == 422
