from __future__ import annotations

import dataclasses

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind
from cyclora_core.store.traces import TracedOperation
from cyclora_core.types import Execution
from cyclora_server.settings import Settings
from server.doubles.builders import MODEL, SESSION, STRANGER_KEY
from server.doubles.store import StoreDouble

EXPORT = f"/api/v1/sessions/{SESSION}/trace_export"


async def exported(client: httpx.AsyncClient) -> str:
    answer = (await client.get(EXPORT)).json()
    assert answer["status"] == "ready"
    return answer["url"]


async def test_the_url_gives_the_trace_without_an_api_key(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    step = OperationKind.OPTIM_STEP
    settled = TracedOperation(f"{MODEL}:1", step, 1000, Execution(7, 1010, 1020), 1030, True)
    store.traces.operations = [settled]
    both = TracedOperation(f"{MODEL}:1", step, 1000)
    store.traces.queued = [both, TracedOperation(f"{MODEL}:2", step, 1005)]
    url = await exported(client)
    del client.headers["X-API-Key"]

    answer = await client.get(url)

    assert answer.status_code == 200
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    events = answer.json()["traceEvents"]
    outcomes = {
        each["args"]["request_id"]: each["args"]["outcome"]
        for each in events
        if "request_id" in each.get("args", {})
    }
    assert outcomes == {f"{MODEL}:1": "done", f"{MODEL}:2": "waiting"}


async def test_an_expired_url_says_so(client: httpx.AsyncClient, clock: ManualClock) -> None:
    url = await exported(client)
    clock.advance(3600)

    assert (await client.get(url)).status_code == 410


@pytest.mark.parametrize("change", [("expires=", "expires=9"), ("signature=", "signature=0")])
async def test_a_changed_url_is_refused(client: httpx.AsyncClient, change: tuple[str, str]) -> None:
    url = await exported(client)

    assert (await client.get(url.replace(*change))).status_code == 403
    assert (await client.get(url.partition("?")[0])).status_code == 403


async def test_a_url_is_for_one_session_only(client: httpx.AsyncClient) -> None:
    url = await exported(client)

    assert (await client.get(url.replace(SESSION, SESSION[:-1] + "2"))).status_code == 403


async def test_another_tenants_session_is_not_exported(client: httpx.AsyncClient) -> None:
    answer = await client.get(EXPORT, headers={"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404


async def test_the_url_begins_as_clients_reach_the_server(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    assert (await exported(client)).startswith("http://server/api/v1/traces/")
    app.state.services = dataclasses.replace(
        app.state.services, settings=Settings(public_url="https://gpu.lab/tinker/")
    )

    assert (await exported(client)).startswith("https://gpu.lab/tinker/api/v1/traces/")
