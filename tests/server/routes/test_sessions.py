from __future__ import annotations

import dataclasses

import httpx
import pytest
from fastapi import FastAPI
from tinker import types
from tinker.types.session_search_response import SessionSearchResponse
from tinker.types.session_status import SessionActive

from cyclora_core import ids
from cyclora_core.accounts import Scope
from cyclora_core.ids import CheckpointKind
from cyclora_core.operations import OperationKind
from cyclora_core.records import Session
from cyclora_server.routes import sessions
from cyclora_server.routes.sessions import MAX_DETAIL_CHARS
from cyclora_server.settings import Settings
from server.doubles.builders import (
    KEY,
    MODEL,
    SAMPLER,
    SESSION,
    STRANGER_KEY,
    TENANT,
    checkpoint,
    model_record,
)
from server.doubles.store import StoreDouble


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
        ("PUT", f"/api/v1/sessions/{SESSION}/project", {"project_id": "mine"}),
    ],
)
async def test_another_tenants_session_looks_missing(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    answer = await client.request(method, path, json=body, headers={"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404
    assert answer.json() == {"detail": f"session {SESSION!r} does not exist"}


async def test_an_id_of_another_form_is_not_even_looked_up(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """The store keeps other things of a session under keys that begin like the session's."""
    longer = f"{SESSION}:samplers"
    store.sessions.records[longer] = store.sessions.records[SESSION]

    answer = await client.get(f"/api/v1/sessions/{longer}")

    assert answer.status_code == 404


async def test_finishing_a_session_ends_its_models_after_what_was_sent_before(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.models.records[MODEL] = model_record(logged_seq_id=6, applied_seq_id=4)

    answer = await client.post(
        f"/api/v1/sessions/{SESSION}/finish", json={"reason": {"type": "success"}}
    )

    assert answer.status_code == 200
    assert store.submitted(f"{MODEL}:7").kind is OperationKind.UNLOAD_MODEL


@pytest.mark.parametrize(
    ("scope", "opened", "status"),
    [
        (Scope.TRAIN, {MODEL, SAMPLER}, 200),
        (Scope.SAMPLE, {MODEL, SAMPLER}, 403),
        (Scope.SAMPLE, {SAMPLER}, 200),
        (Scope.READ, {MODEL}, 403),
        (Scope.READ, {SAMPLER}, 403),
        (Scope.READ, set[str](), 200),
    ],
)
async def test_a_key_ends_no_session_that_it_could_not_have_opened(
    client: httpx.AsyncClient, store: StoreDouble, scope: Scope, opened: set[str], status: int
) -> None:
    store.api_keys.change(KEY, scopes=frozenset({scope}))
    for records in (store.models.records, store.sampling.records):
        for each in records.keys() - opened:
            del records[each]

    answer = await client.post(
        f"/api/v1/sessions/{SESSION}/finish", json={"reason": {"type": "success"}}
    )

    assert answer.status_code == status
    is_live = store.sessions.records[SESSION].finished_reason is None
    assert is_live is (status == 403)


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


async def test_what_a_client_says_at_the_end_is_kept_up_to_a_length(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    body = {"reason": {"type": "errored"}, "detail": "x" * 5000}

    await client.post(f"/api/v1/sessions/{SESSION}/finish", json=body)

    assert store.sessions.records[SESSION].finished_detail == "x" * MAX_DETAIL_CHARS


async def test_a_reason_that_the_sdk_could_not_read_back_is_refused(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    body = {"reason": {"type": "expired"}}

    answer = await client.post(f"/api/v1/sessions/{SESSION}/finish", json=body)

    assert answer.status_code == 422
    assert store.sessions.records[SESSION].finished_reason is None


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("project_id", "no/slash", 400),
        ("display_name", "x" * 1001, 422),
        ("tags", ["x" * 257], 422),
        ("user_metadata", {"note": "x" * 66_000}, 422),
    ],
)
async def test_what_would_be_kept_for_ever_is_bounded(
    client: httpx.AsyncClient, app: FastAPI, field: str, value: object, status: int
) -> None:
    app.state.services = dataclasses.replace(
        app.state.services, settings=Settings(max_body_bytes=68_000)
    )

    answer = await client.post("/api/v1/create_session", json={field: value})

    assert answer.status_code == status


async def test_a_session_is_moved_into_a_project(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    answer = await client.put(f"/api/v1/sessions/{SESSION}/project", json={"project_id": "paper"})

    assert answer.status_code == 200
    assert store.sessions.records[SESSION].project_id == "paper"


@pytest.mark.parametrize(
    ("project_id", "status"), [("a b", 400), ("", 400), (None, 422), ("x" * 129, 400)]
)
async def test_a_project_that_is_none_is_refused(
    client: httpx.AsyncClient, project_id: str | None, status: int
) -> None:
    path = f"/api/v1/sessions/{SESSION}/project"

    assert (await client.put(path, json={"project_id": project_id})).status_code == status


async def test_an_unknown_scope_is_refused(client: httpx.AsyncClient) -> None:
    for path in ("sessions", f"sessions/{SESSION}", "training_runs"):
        answer = await client.get(f"/api/v1/{path}", params={"access_scope": "everybody"})
        assert answer.status_code == 422


async def search(client: httpx.AsyncClient, **filters: object) -> SessionSearchResponse:
    answer = await client.post("/api/v1/sessions/search", json=filters)
    return SessionSearchResponse.model_validate(answer.json())


async def test_the_sdk_understands_what_a_search_finds(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint("a"))
    store.checkpoints.put(checkpoint("b", CheckpointKind.SAMPLER))

    [found] = (await search(client)).sessions

    assert found.session_id == SESSION
    assert found.created_at.tzinfo is not None
    assert (found.owner, found.project_id) == (f"tml:organization_user:{TENANT}", "default")
    assert (found.checkpoints_count, found.checkpoint_storage_bytes) == (2, 246)
    assert found.status == SessionActive()


async def test_a_search_finds_nothing_of_other_tenants(client: httpx.AsyncClient) -> None:
    client.headers["X-API-Key"] = STRANGER_KEY

    assert (await search(client, owner={"type": "accessible"})).sessions == []
    assert (await search(client, session_id=SESSION)).sessions == []


async def test_pages_of_a_search_hold_everything_once(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    made = [ids.new_session_id() for _ in range(5)]
    for number, session_id in enumerate(made):
        record = Session(session_id, TENANT, 2000 + number // 2, 1, display_name="Nightly run")
        store.sessions.records[session_id] = record

    seen: list[str] = []
    cursor = None
    while True:
        page = await search(client, limit=2, display_name="nightly", cursor=cursor)
        seen += [each.session_id for each in page.sessions]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor.model_dump(mode="json")

    assert sorted(seen) == sorted(made)


async def test_a_search_that_finds_little_goes_on_with_its_cursor(
    client: httpx.AsyncClient, store: StoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_SEARCHED", 2)
    monkeypatch.setattr(sessions, "_AT_ONCE", 2)
    for number in range(4):
        session_id = ids.new_session_id()
        store.sessions.records[session_id] = Session(session_id, TENANT, 2000 + number, 1)

    first = await search(client, session_id=SESSION)

    assert first.sessions == []
    assert first.next_cursor is not None
    cursor = first.next_cursor.model_dump(mode="json")
    second = await search(client, session_id=SESSION, cursor=cursor)
    assert second.next_cursor is not None
    cursor = second.next_cursor.model_dump(mode="json")
    assert [each.session_id for each in (await search(client, cursor=cursor)).sessions] == [SESSION]


@pytest.mark.parametrize(
    "filters",
    [
        {"limit": 0},
        {"limit": 201},
        {"display_name": ""},
        {"owner": {"type": "user"}},
        {"owner": {"type": "user", "owner_urns": ["u"] * 11}},
        {"owner": {"type": "everybody"}},
        {"statuses": []},
        {"statuses": [{"type": "lost"}]},
        {"statuses": [{"type": "client_finished", "reasons": []}]},
        {"cursor": {"last_created_at": "2026-01-01T00:00:00", "last_session_id": "x"}},
    ],
)
async def test_a_filter_that_means_nothing_is_refused(
    client: httpx.AsyncClient, filters: dict[str, object]
) -> None:
    answer = await client.post("/api/v1/sessions/search", json=filters)

    assert answer.status_code == 422
