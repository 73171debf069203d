from __future__ import annotations

import httpx
import pytest
from tinker import types

from cyclora_core import ids
from cyclora_core.operations import OperationKind
from server.double import MODEL, SAMPLER, SESSION, STRANGER_KEY, TENANT, StoreDouble, model_record


async def test_a_session_is_opened_for_the_tenant_of_the_key(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    body = {"tags": ["a"], "user_metadata": {"n": 1}, "sdk_version": "0.38.0", "project_id": None}

    answer = await client.post("/api/v1/create_session", json=body)

    session = store.sessions.records[answer.json()["session_id"]]
    assert ids.is_session_id(session.session_id)
    assert session.tenant_id == TENANT
    assert session.user_metadata == {"n": "1"}


async def test_a_repeated_request_finds_its_session(client: httpx.AsyncClient) -> None:
    headers = {"X-Idempotency-Key": "retry-1"}

    answers = [
        await client.post("/api/v1/create_session", json={}, headers=headers) for _ in range(2)
    ]

    assert answers[0].json() == answers[1].json()


async def test_a_heartbeat_reaches_the_store(client: httpx.AsyncClient, store: StoreDouble) -> None:
    answer = await client.post("/api/v1/session_heartbeat", json={"session_id": SESSION})

    assert answer.json() == {"type": "session_heartbeat"}
    assert store.sessions.heartbeats == [SESSION]


async def test_a_finished_session_ends_the_heartbeats(client: httpx.AsyncClient) -> None:
    body = {"reason": {"type": "success"}, "detail": None}
    assert (await client.post(f"/api/v1/sessions/{SESSION}/finish", json=body)).status_code == 200

    answer = await client.post("/api/v1/session_heartbeat", json={"session_id": SESSION})

    assert answer.status_code == 410


async def test_the_first_reason_to_finish_stands(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    for reason in ("errored", "success"):
        body = {"reason": {"type": reason}}
        await client.post(f"/api/v1/sessions/{SESSION}/finish", json=body)

    assert store.sessions.records[SESSION].finished_reason == "errored"


async def test_sessions_are_listed_newest_first(client: httpx.AsyncClient) -> None:
    created = (await client.post("/api/v1/create_session", json={})).json()["session_id"]

    answer = await client.get("/api/v1/sessions", params={"limit": 20, "access_scope": "owned"})

    assert answer.json() == {"sessions": [created, SESSION]}


async def test_a_session_shows_what_it_opened(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/api/v1/sessions/{SESSION}")

    response = types.GetSessionResponse.model_validate(answer.json())
    assert response.training_run_ids == [MODEL]
    assert response.sampler_ids == [SAMPLER]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/api/v1/sessions/{SESSION}", None),
        ("POST", "/api/v1/session_heartbeat", {"session_id": SESSION}),
        ("POST", f"/api/v1/sessions/{SESSION}/finish", {"reason": {"type": "success"}}),
    ],
)
async def test_another_tenants_session_looks_missing(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    answer = await client.request(method, path, json=body, headers={"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404
    assert answer.json() == {"detail": f"session {SESSION!r} does not exist"}


async def test_finishing_a_session_ends_its_models_after_what_was_sent_before(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.models.records[MODEL] = model_record(logged_seq_id=6, applied_seq_id=4)

    answer = await client.post(
        f"/api/v1/sessions/{SESSION}/finish", json={"reason": {"type": "success"}}
    )

    assert answer.status_code == 200
    assert store.submitted(f"{MODEL}:7").kind is OperationKind.UNLOAD_MODEL


async def test_a_session_finished_twice_ends_its_models_once(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    for is_ended in (False, True):
        store.models.records[MODEL] = model_record(logged_seq_id=6, is_ended=is_ended)
        body = {"reason": {"type": "success"}}
        assert (
            await client.post(f"/api/v1/sessions/{SESSION}/finish", json=body)
        ).status_code == 200

    assert len(store.operations.submissions) == 1
