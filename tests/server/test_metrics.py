"""What a server counts, by requests that are sent to it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import ModelResult, OperationKind
from cyclora_core.store.memory import MemoryReading
from cyclora_server.app import create_app
from cyclora_server.metrics import ServerMetrics
from cyclora_server.services import Services
from cyclora_server.settings import Settings
from server.doubles.builders import KEY, MODEL, TENANT, pending
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble

REQUEST = ids.request_id(MODEL, 1)


class Meter:
    """One application's metrics, read as Prometheus reads them."""

    def __init__(self, app: FastAPI) -> None:
        services: Services = app.state.services
        self.services = services
        self.metrics: ServerMetrics = services.metrics

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.instruments.registry.get_sample_value(f"cyclora_{name}", labels)

    def labels_of(self, name: str) -> list[dict[str, str]]:
        families = self.metrics.instruments.registry.collect()
        return [s.labels for f in families for s in f.samples if s.name == f"cyclora_{name}"]


@pytest.fixture
def meter(app: FastAPI) -> Meter:
    return Meter(app)


async def test_requests_are_counted_by_the_template_of_their_route(
    client: httpx.AsyncClient, meter: Meter
) -> None:
    for run in ("one", "two"):
        await client.get(f"/api/v1/training_runs/{run}")

    route = "/api/v1/training_runs/{run}"
    assert meter.value("requests_total", route=route, method="GET", status="404") == 2
    assert meter.value("request_seconds_count", route=route, method="GET") == 2


async def test_a_client_cannot_make_metrics_grow(client: httpx.AsyncClient, meter: Meter) -> None:
    """Paths, methods and headers are anything at all; a label of each would fill the memory."""
    for number in range(20):
        await client.request(f"METHOD{number}", f"/nowhere/{number}?q={number}")

    assert meter.labels_of("requests_total") == [
        {"route": "none", "method": "other", "status": "404"}
    ]


async def test_the_time_a_request_takes_is_noted(
    client: httpx.AsyncClient,
    meter: Meter,
    clock: ManualClock,
    store: StoreDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_flight: list[float | None] = []

    async def slow() -> list[object]:
        in_flight.append(meter.value("requests_in_flight"))
        clock.advance(1.5)
        return []

    monkeypatch.setattr(store.base_models, "list", slow)
    await client.get("/api/v1/get_server_capabilities")

    route = "/api/v1/get_server_capabilities"
    assert meter.value("request_seconds_sum", route=route, method="GET") == 1.5
    assert (in_flight, meter.value("requests_in_flight")) == ([1], 0)


@pytest.mark.parametrize(("path", "key", "reason"), [
    ("/api/v1/training_runs/x", KEY, "not_found"),
    ("/api/v1/training_runs/x", "tml-wrong", "unauthorized"),
    ("/api/v1/sessions?limit=x", KEY, "invalid_body"),
    ("/admin/v1/keys", KEY, "forbidden"),
    ("/v1/models/none", KEY, "unknown_model"),
    ("/nowhere", KEY, "http_404"),
])  # fmt: skip
async def test_refusals_are_counted_by_their_kind(
    client: httpx.AsyncClient, meter: Meter, path: str, key: str, reason: str
) -> None:
    await client.get(path, headers={"X-API-Key": key})

    assert meter.value("refused_requests_total", reason=reason) == 1
    known = reason in ("not_found", "forbidden", "unknown_model", "invalid_body")
    expected = 1 if known and key == KEY else None
    found = meter.value("tenant_refused_requests_total", tenant_id=TENANT, reason=reason)
    assert found == expected


async def test_a_fault_of_ours_is_counted_as_such_on_every_kind_of_route(
    client: httpx.AsyncClient,
    meter: Meter,
    store: StoreDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(store.futures, "get", broken)
    monkeypatch.setattr(store.base_models, "list", broken)
    await client.get("/api/v1/get_server_capabilities")
    await client.get("/v1/models")
    answer = await client.post("/api/v1/retrieve_future", json={"request_id": REQUEST})

    assert answer.status_code == 429
    assert meter.value("refused_requests_total", reason="internal_error") == 3


async def test_want_of_room_is_counted_by_what_is_low(
    client: httpx.AsyncClient, meter: Meter, store: StoreDouble
) -> None:
    store.memory.reading = MemoryReading(used_bytes=999, limit_bytes=1000)
    await meter.services.capacity.measure()
    session = (await client.post("/api/v1/create_session", json=SESSION_BODY)).json()
    body = {"session_id": session["session_id"], "model_seq_id": 0, "base_model": "org/tiny"}
    answer = await client.post("/api/v1/create_model", json=body)

    assert answer.status_code == 429
    assert meter.value("refused_requests_total", reason="store_memory_low") == 1
    assert meter.value("shortage", resource="store_memory") == 1
    assert meter.value("shortage", resource="disk") == 0
    assert meter.value("store_memory_bytes", state="used") == 999
    assert meter.value("store_memory_bytes", state="limit") == 1000


SESSION_BODY = {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"}


async def test_operations_are_counted_by_what_the_store_said(
    client: httpx.AsyncClient, meter: Meter
) -> None:
    session = (await client.post("/api/v1/create_session", json=SESSION_BODY)).json()
    good = {
        "session_id": session["session_id"],
        "model_seq_id": 0,
        "base_model": "org/tiny",
        "lora_config": {"rank": 8},
    }
    for _ in range(2):
        assert (await client.post("/api/v1/create_model", json=good)).status_code == 200

    for outcome in ("accepted", "duplicate"):
        found = meter.value("submitted_operations_total", kind="create_model", outcome=outcome)
        assert found == 1
    assert meter.value("submit_seconds_count", kind="create_model") == 2


async def test_a_poll_that_is_held_is_seen_and_its_wake_up_timed(
    store: StoreDouble, storage: StorageDouble, clock: ManualClock
) -> None:
    app = create_app(Settings(poll_hold_s=10.0), store, storage, clock)
    meter = Meter(app)
    store.futures.records[REQUEST] = pending(REQUEST)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://server", headers={"X-API-Key": KEY}
        ) as client,
    ):
        polling = asyncio.create_task(
            client.post("/api/v1/retrieve_future", json={"request_id": REQUEST})
        )
        while meter.value("held_polls") == 0:
            await asyncio.sleep(0)
        store.futures.settle(REQUEST, ModelResult(MODEL))
        assert (await polling).status_code == 200
        await client.post("/api/v1/retrieve_future", json={"request_id": REQUEST})

    assert meter.value("held_polls") == 0
    assert meter.value("poll_wake_seconds_count") == 1  # the second one waited for nothing


def test_tenants_beyond_the_setting_are_counted_together(store: StoreDouble) -> None:
    metrics = ServerMetrics(max_tenants=1)
    for tenant_id in ("a", "b", "c"):
        metrics.refused("not_found", tenant_id)

    registry = metrics.instruments.registry
    found = {
        label: registry.get_sample_value(
            "cyclora_tenant_refused_requests_total", {"tenant_id": label, "reason": "not_found"}
        )
        for label in ("a", "b", "other")
    }
    assert found == {"a": 1, "b": None, "other": 2}


def test_kinds_of_operations_have_the_names_of_the_wire() -> None:
    assert {str(kind) for kind in OperationKind} >= {"create_model", "optim_step", "sample"}
