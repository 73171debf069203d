from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from cyclora_core.clock import ManualClock
from server.doubles.builders import KEY, MODEL, TENANT, model_record
from server.doubles.store import StoreDouble


async def test_a_request_leaves_one_line_without_body_and_key(client: httpx.AsyncClient) -> None:
    body = {"session_id": "private words"}
    with capture_logs() as logs:
        answer = await client.post("/api/v1/session_heartbeat", json=body)

    assert answer.status_code == 404
    [line] = logs
    assert line["event"] == "request finished"
    assert line["method"] == "POST"
    assert line["route"] == "/api/v1/session_heartbeat"
    assert line["status"] == 404
    assert line["tenant_id"] == TENANT
    assert line["request_bytes"] == len(answer.request.content)
    assert line["response_bytes"] == len(answer.content)
    assert "private words" not in str(line)
    assert KEY not in str(line)


async def test_the_line_holds_the_route_and_not_the_path(client: httpx.AsyncClient) -> None:
    """Paths hold ids; a log grouped by them has one group per request."""
    with capture_logs() as logs:
        await client.get("/api/v1/training_runs/some-run")

    assert logs[0]["route"] == "/api/v1/training_runs/{run}"


async def test_the_line_names_the_model_and_the_request_that_it_is_about(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.models.records[MODEL] = model_record()
    body = {"model_id": MODEL, "seq_id": 1, "adam_params": {"learning_rate": 0.1}}
    with capture_logs() as logs:
        promise = (await client.post("/api/v1/optim_step", json=body)).json()
        await client.post("/api/v1/retrieve_future", json={"request_id": promise["request_id"]})
        await client.get("/api/v1/sessions")

    submitted, polled, listed = (line for line in logs if line["event"] == "request finished")
    assert (submitted["model_id"], submitted["request_id"]) == (MODEL, promise["request_id"])
    assert polled["request_id"] == promise["request_id"]
    assert "request_id" not in listed
    assert [each["tenant_id"] for each in (submitted, polled, listed)] == [TENANT] * 3


async def test_an_id_that_is_none_of_the_tenant_is_not_logged(client: httpx.AsyncClient) -> None:
    """It may be anything, a key put into the wrong place too."""
    with capture_logs() as logs:
        await client.post("/api/v1/retrieve_future", json={"request_id": "tml-secret"})
        await client.post("/api/v1/get_info", json={"model_id": "tml-secret"})

    assert len(logs) == 2
    assert "tml-secret" not in str(logs)


async def test_the_line_holds_the_duration(
    client: httpx.AsyncClient,
    clock: ManualClock,
    store: StoreDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slow() -> list[object]:
        clock.advance(1.5)
        return []

    monkeypatch.setattr(store.base_models, "list", slow)
    with capture_logs() as logs:
        await client.get("/api/v1/get_server_capabilities")

    assert logs[0]["duration_s"] == 1.5


async def test_an_unexpected_error_is_answered_with_its_error_id_only(
    client: httpx.AsyncClient, store: StoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> list[object]:
        raise RuntimeError("internal text")

    monkeypatch.setattr(store.base_models, "list", broken)
    with capture_logs() as logs:
        answer = await client.get("/api/v1/get_server_capabilities")

    assert answer.status_code == 500
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert "internal text" not in answer.text
    assert [each["event"] for each in logs] == ["request failed", "request finished"]
    assert logs[0]["error_id"] in answer.json()["detail"]
    assert logs[1]["status"] == 500


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/nowhere", 404),
    ("GET", "/api/v1/create_model", 405),
    ("GET", "/api/v1/sessions?limit=x", 422),
])  # fmt: skip
async def test_errors_of_the_framework_look_like_ours(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)

    assert answer.status_code == status
    assert isinstance(answer.json()["detail"], str)
    assert int(answer.headers["Content-Length"]) == len(answer.content)


async def test_the_documentation_describes_every_json_body(app: FastAPI) -> None:
    posts = {
        path: item["post"]
        for path, item in app.openapi()["paths"].items()
        if "post" in item and "put" not in item
    }
    without_json_body = {
        "/api/v1/auth/token",  # needs none
        "/api/v1/telemetry",
        "/api/v1/forward",
        "/api/v1/forward_backward",
        "/api/v1/training_runs/{run}/checkpoints/{kind}/{name}/publish",  # has none
        "/admin/v1/workers/{worker_id}/drain",
        "/admin/v1/workers/{worker_id}/resume",
        "/admin/v1/models/{model_id}/load",
        "/admin/v1/models/{model_id}/unload",
    }

    assert {path for path, post in posts.items() if "requestBody" not in post} == without_json_body
