"""Every documented route, asked by one tenant about what is another's: as if it did not exist.

The same holds for a key that is bound to a project, about what its tenant has in others. All ids
hold their session's id, so the same request with another session's id in it is about something that
never was.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.ids import CheckpointKind, loss_id
from cyclora_core.records import Session
from cyclora_core.storage import StoredFile
from server.doubles.builders import (
    BASE,
    KEY,
    MODEL,
    SAMPLER,
    SESSION,
    STRANGER,
    STRANGER_KEY,
    TENANT,
    checkpoint,
    model_record,
    pending,
)
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble
from server.routes.test_custom_losses import upload
from server.routes.test_sampling import sdk_sample
from server.routes.test_training import CREATE, PROTOBUF, STEP, pass_bytes
from server.walk import methods_and_paths

UNKNOWN = "00000000-0000-4000-8000-00000000dead"
STRANGERS_OWN = "00000000-0000-4000-8000-000000000002"
RUN = f"/api/v1/training_runs/{MODEL}"
STATE = f"{RUN}/checkpoints/weights/final"
EXPORT = f"{RUN}/checkpoints/external_weights/final"
PATH = f"tinker://{MODEL}/weights/final"
ONE = "/api/v1/training_runs/{run}/checkpoints/{kind}/{name}"
SESSION_ROUTE = "/api/v1/sessions/{session_id}"
SESSION_PATH = f"/api/v1/sessions/{SESSION}"
SAVE = {"model_id": MODEL, "seq_id": 1, "path": "mine"}
LOAD = {"session_id": STRANGERS_OWN, "model_seq_id": 5, "path": PATH, "optimizer": True}


@dataclass(frozen=True)
class Ask:
    """One request that names something of tenant A."""

    route: str
    """Method and path as the OpenAPI document has them."""
    path: str
    content: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def get(route: str, path: str) -> Ask:
    return Ask(f"GET {route}", path)


def sent(method: str, route: str, path: str, /, **body: Any) -> Ask:
    return Ask(f"{method} {route}", path, json.dumps(body).encode())


def posted(name: str, /, **body: Any) -> Ask:
    return sent("POST", f"/api/v1/{name}", f"/api/v1/{name}", **body)


ASKS = [
    posted("session_heartbeat", session_id=SESSION),
    get(SESSION_ROUTE, SESSION_PATH),
    get(SESSION_ROUTE, f"{SESSION_PATH}?access_scope=accessible"),
    sent("POST", f"{SESSION_ROUTE}/finish", f"{SESSION_PATH}/finish"),
    sent("PUT", f"{SESSION_ROUTE}/project", f"{SESSION_PATH}/project", project_id="mine"),
    get(f"{SESSION_ROUTE}/trace_export", f"{SESSION_PATH}/trace_export"),
    posted("create_model", **CREATE),
    posted("get_info", model_id=MODEL),
    Ask(
        "POST /api/v1/forward_backward",
        "/api/v1/forward_backward",
        pass_bytes(1, 2),
        tuple(PROTOBUF.items()),
    ),
    posted("forward_backward", model_id=MODEL, seq_id=1, forward_backward_input={}),
    posted("forward", model_id=MODEL, seq_id=1, forward_input={}),
    posted("optim_step", **STEP),
    posted("unload_model", model_id=MODEL),
    posted("create_custom_loss", **upload()),
    posted("save_weights", **SAVE),
    posted("save_weights_for_sampler", **SAVE),
    posted("save_weights_external", **SAVE),
    posted("load_weights", model_id=MODEL, seq_id=1, path=PATH),
    posted("load_weights", session_id=SESSION, model_seq_id=5, path=PATH),
    posted("load_weights", **LOAD),
    posted("weights_info", tinker_path=PATH),
    posted(
        "create_sampling_session",
        session_id=SESSION,
        sampling_session_seq_id=1,
        base_model=BASE.name,
    ),
    posted(
        "create_sampling_session",
        session_id=STRANGERS_OWN,
        sampling_session_seq_id=1,
        model_path=PATH,
    ),
    get("/api/v1/samplers/{sampling_session_id}", f"/api/v1/samplers/{SAMPLER}"),
    posted("join_sampling_session", sampling_session_id=SAMPLER),
    posted("asample", **sdk_sample()),
    posted("cancel_future", request_id=f"{SAMPLER}:7"),
    posted("cancel_future", request_id=f"{MODEL}:1"),
    posted("retrieve_future", request_id=f"{MODEL}:1"),
    posted("retrieve_future", request_id=f"{MODEL}:99"),
    posted("retrieve_future", request_id=f"{SAMPLER}:7"),
    posted("retrieve_future", request_id=loss_id(SESSION, 0)),
    posted("retrieve_futures", target={"sampling_session_id": SAMPLER}),
    get("/api/v1/training_runs/{run}", RUN),
    get("/api/v1/training_runs/{run}", f"{RUN}?access_scope=accessible"),
    get("/api/v1/training_runs/{run}/checkpoints", f"{RUN}/checkpoints"),
    sent("DELETE", ONE, STATE),
    sent("PUT", f"{ONE}/ttl", f"{STATE}/ttl", ttl_seconds=7200),
    sent("POST", f"{ONE}/publish", f"{STATE}/publish"),
    sent("DELETE", f"{ONE}/publish", f"{STATE}/publish"),
    get(f"{ONE}/external_weights_urls", f"{EXPORT}/external_weights_urls"),
    get(f"{ONE}/archive", f"{STATE}/archive"),
    posted("copy_weights", source_path=PATH, destination_project_id="mine"),
    posted("copy_weights", source_path=PATH, session_id=SESSION, model_seq_id=5),
    get("/v1/models/{name}", f"/v1/models/{PATH}"),
    sent("POST", "/v1/completions", "/v1/completions", model=PATH, prompt="a"),
    sent(
        "POST",
        "/v1/chat/completions",
        "/v1/chat/completions",
        model=PATH,
        messages=[{"role": "user", "content": "a"}],
    ),
]
FOR_OWNER = [
    ask
    for ask in ASKS
    if STRANGERS_OWN.encode() not in ask.content and not ask.route.endswith("completions")
]
"""Less what waits for a worker, and what the stranger asks with a session of its own."""

FILTERS = [
    posted("sessions/search", session_id=SESSION),
    posted(
        "sessions/search",
        cursor={"last_created_at": "2030-01-01T00:00:00Z", "last_session_id": SESSION},
    ),
    posted("sessions/search", project_ids=[SESSION]),
    get("/api/v1/training_runs", f"/api/v1/training_runs?project_id={SESSION}"),
    get(
        "/api/v1/billing/usage/checkpoints/current",
        f"/api/v1/billing/usage/checkpoints/current?project_id={SESSION}",
    ),
    get("/api/v1/usage", f"/api/v1/usage?run={MODEL}&group_by=run"),
]
"""What only narrows a list of the tenant's own."""

SIGNED = {
    "GET /api/v1/archives/{right}/{run}/{kind}/{name}/{revision}",
    "GET /api/v1/files/{right}/{run}/{kind}/{name}/{revision}/{file}",
    "GET /api/v1/traces/{session_id}",
}
"""Here the URL is the right, and names no tenant."""

OF_NOBODY = {
    "GET /api/v1/healthz",
    "GET /healthz/live",
    "GET /healthz/ready",
    "POST /api/v1/client/config",
    "POST /api/v1/client/dynamic_config",
    "GET /api/v1/get_server_capabilities",
    "POST /api/v1/telemetry",
    "POST /api/v1/auth/token",
    "GET /api/v1/auth/apikey/me",
    "DELETE /api/v1/auth/apikey/me",
    "POST /api/v1/create_session",
    "GET /api/v1/sessions",
    "GET /api/v1/checkpoints",
    "POST /api/v1/adapters",
    "GET /api/v1/tokenizers/{base_model}/files/{name}",
    "GET /api/v1/tokenizers/{base_model}",
    "GET /api/v1/audit",
    "GET /api/v1/billing/usage/events",
    "GET /api/v1/quotas",
    "GET /v1/models",
}
"""Routes that take no id of anything that a tenant owns."""


def about(ask: Ask, change: Callable[[str], str] = str) -> httpx.Request:
    content = change(ask.content.decode("latin-1")).encode("latin-1")
    method = ask.route.partition(" ")[0]
    url = f"http://server{change(ask.path)}"
    return httpx.Request(method, url, content=content, headers=list(ask.headers))


def unknown(text: str) -> str:
    return text.replace(SESSION, UNKNOWN)


async def answered(client: httpx.AsyncClient, request: httpx.Request) -> tuple[int, str]:
    request.headers.update(client.headers)
    answer = await client.send(request)
    return answer.status_code, unknown(answer.text)


@pytest.fixture(autouse=True)
def theirs(store: StoreDouble, storage: StorageDouble, tmp_path: Path) -> None:
    """Something of tenant A behind every id, and a session of the stranger's own."""
    mine = store.sessions.records[SESSION]
    store.sessions.records[SESSION] = dataclasses.replace(mine, project_id=SESSION)
    store.sessions.records[STRANGERS_OWN] = Session(STRANGERS_OWN, STRANGER, 1000, 1000)
    store.models.records[MODEL] = model_record()
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"weights_of_a")
    for kind in CheckpointKind:
        record = store.checkpoints.put(checkpoint(kind=kind, revision="7"))
        storage.files[f"{record.path} 7"] = [StoredFile(file, 12)]
    store.futures.records = {each: pending(each) for each in (f"{MODEL}:1", f"{SAMPLER}:7")}


def test_every_route_is_asked_or_takes_no_id_of_a_tenant(app: FastAPI) -> None:
    """Administration is for all tenants, and closed to all keys but an administrator's."""
    routes = {
        f"{method.upper()} {path}"
        for path, item in app.openapi()["paths"].items()
        for method in item
        if not path.startswith("/admin/")
    }
    asked = {ask.route for ask in [*ASKS, *FILTERS]}

    assert routes == asked | SIGNED | OF_NOBODY
    assert not asked & (SIGNED | OF_NOBODY)


@pytest.fixture(params=["another tenant", "another project"])
def stranger(request: pytest.FixtureRequest, client: httpx.AsyncClient, store: StoreDouble) -> None:
    """Send requests with a key to which nothing of tenant A's project is open."""
    if request.param == "another tenant":
        client.headers["X-API-Key"] = STRANGER_KEY
        return
    store.api_keys.change(KEY, project_id="mine")
    store.sessions.records[STRANGERS_OWN] = Session(
        STRANGERS_OWN, TENANT, 1000, 1000, project_id="mine"
    )


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.route)
async def test_what_is_another_tenants_answers_like_what_does_not_exist(
    client: httpx.AsyncClient, store: StoreDouble, ask: Ask
) -> None:
    checkpoints, session = dict(store.checkpoints.records), store.sessions.records[SESSION]

    known = await answered(client, about(ask))

    assert known[0] == 404
    assert known == await answered(client, about(ask, unknown))
    assert store.checkpoints.records == checkpoints
    assert store.sessions.records[SESSION] == session
    assert store.operations.submissions == {}


@pytest.mark.parametrize("ask", FOR_OWNER, ids=lambda ask: ask.route)
async def test_the_same_request_finds_what_is_there_for_its_owner(
    client: httpx.AsyncClient, ask: Ask
) -> None:
    """Else the refusals above would be of something else."""
    assert (await answered(client, about(ask)))[0] != 404


@pytest.mark.parametrize("ask", FILTERS, ids=lambda ask: ask.path)
async def test_a_list_narrowed_to_what_is_another_tenants_is_the_list_of_nothing(
    client: httpx.AsyncClient, ask: Ask
) -> None:
    client.headers["X-API-Key"] = STRANGER_KEY

    known = await answered(client, about(ask))

    assert known[0] == 200
    assert known == await answered(client, about(ask, unknown))
    assert MODEL not in known[1]


IN_PATHS = {
    "run": MODEL,
    "session_id": SESSION,
    "sampling_session_id": SAMPLER,
    "kind": "weights",
    "name": "final",
    "name:path": PATH,
    "right": "owned",
    "revision": "7",
    "file": "adapter_model.safetensors",
    "base_model:path": BASE.name,
    "tenant_id": TENANT,
    "key_id": "key-a",
    "worker_id": "worker-1",
    "model_id": MODEL,
}
IN_QUERIES = f"project_id={SESSION}&session_id={SESSION}&tenant_id={TENANT}"
IN_BODIES: dict[str, Any] = {
    **dict.fromkeys(("session_id", "project_id", "destination_project_id"), SESSION),
    **dict.fromkeys(("path", "source_path", "tinker_path", "model_path", "model"), PATH),
    "model_id": MODEL,
    "sampling_session_id": SAMPLER,
    "request_id": f"{MODEL}:1",
    "loss_id": loss_id(SESSION, 0),
    "target": {"sampling_session_id": SAMPLER},
    "retrieved_request_ids": [f"{MODEL}:1", f"{SAMPLER}:7"],
    "cursor": {"last_created_at": "2030-01-01T00:00:00Z", "last_session_id": SESSION},
    "seq_id": 1,
    "adam_params": {"learning_rate": 0.5},
    "ttl_seconds": 7200,
    "prompt": "a",
    "messages": [{"role": "user", "content": "a"}],
}
"""Whatever any route reads from a path, a query or a body: something of tenant A in each place."""


def of_own_session(text: str) -> str:
    return text.replace(SESSION, STRANGERS_OWN)


def far_away(text: str) -> str:
    return of_own_session(text).replace(":train:0", ":train:999")


GUESSES: dict[str, Callable[[str], str]] = {
    "another tenant's": str,
    "own session, another number": of_own_session,
    "own session, far away": far_away,
}


def everywhere(method: str, path: str, change: Callable[[str], str]) -> httpx.Request:
    filled = re.sub(r"{([^}]*)}", lambda match: quote(IN_PATHS[match[1]]), path)
    content = json.dumps(IN_BODIES).encode()
    url = f"http://server{change(filled)}?{change(IN_QUERIES)}"
    return httpx.Request(method, url, content=change(content.decode()).encode())


@pytest.mark.parametrize("guess", GUESSES)
async def test_no_route_tells_what_is_there_from_what_is_not(
    app: FastAPI, client: httpx.AsyncClient, store: StoreDouble, guess: str
) -> None:
    """Walks all routes, documented or not: what is new is asked too, without being named here."""
    client.headers["X-API-Key"] = STRANGER_KEY
    before = dict(store.checkpoints.records), store.sessions.records[SESSION]
    asked = 0
    for method, path in methods_and_paths(app):
        if path.startswith(("/docs", "/openapi")):
            continue
        answers: list[tuple[int, str]] = []
        for change in (GUESSES[guess], unknown):
            store.api_keys.change(STRANGER_KEY, revoked_at_ms=None)
            status, text = await answered(client, everywhere(method, path, change))
            # New sessions get an id of their own with every request.
            answers.append((status, re.sub(r"[0-9a-f-]{36}", "ID", text)))
        asked += 1

        is_own_guess = guess != "another tenant's"
        assert answers[0][0] < 500
        assert is_own_guess or answers[0] == answers[1], f"{method} {path}"
        assert "weights_of_a" not in answers[0][1]
    assert asked > 60
    assert (dict(store.checkpoints.records), store.sessions.records[SESSION]) == before
    assert not any(each.tenant_id == TENANT for each in store.operations.submissions.values())
