"""Probes tell the truth, on the public port without saying more."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.clock import ManualClock
from cyclora_core.errors import Unavailable
from cyclora_core.health import MAX_SILENCE_S
from cyclora_server.services import Services
from server.doubles.store import StoreDouble

NO_KEY = {"X-API-Key": ""}


@pytest.fixture
def services(app: FastAPI) -> Services:
    return app.state.services


async def subscribed(services: Services, client: httpx.AsyncClient) -> None:
    """Let the hub's task come to its subscription."""
    while not services.hub.is_subscribed:
        await client.get("/healthz/live")


async def test_a_server_that_has_started_is_alive_and_ready_and_needs_no_key(
    client: httpx.AsyncClient, services: Services
) -> None:
    await subscribed(services, client)
    for path in ("/healthz/live", "/healthz/ready", "/api/v1/healthz"):
        answer = await client.get(path, headers=NO_KEY)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def store_away(services: Services, store: StoreDouble, clock: ManualClock) -> None:
    clock.advance(6.0)  # in which no measurement came back


def not_subscribed(services: Services, store: StoreDouble, clock: ManualClock) -> None:
    store.futures.is_subscribed = False


def shutting_down(services: Services, store: StoreDouble, clock: ManualClock) -> None:
    services.hub.close()


@pytest.mark.parametrize(
    ("trouble", "name"),
    [(store_away, "store"), (not_subscribed, "announcements"), (shutting_down, "open")],
)
async def test_a_server_that_could_not_serve_is_alive_but_not_ready(
    client: httpx.AsyncClient,
    services: Services,
    store: StoreDouble,
    clock: ManualClock,
    trouble: Callable[[Services, StoreDouble, ManualClock], None],
    name: str,
) -> None:
    await subscribed(services, client)
    trouble(services, store, clock)

    answer = await client.get("/healthz/ready")

    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
    assert services.health.not_ready() == [name]
    assert (await client.get("/healthz/live")).status_code == 200


async def test_a_server_is_ready_again_when_the_store_is_back(
    client: httpx.AsyncClient,
    services: Services,
    store: StoreDouble,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await subscribed(services, client)

    async def away() -> None:
        raise Unavailable("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(store.memory, "read", away)
        await services.capacity.measure()
        assert services.health.not_ready() == []  # one answer missed is not an outage yet
        clock.advance(6.0)
        await services.capacity.measure()
        assert services.health.not_ready() == ["store"]

    await services.capacity.measure()
    assert services.health.not_ready() == []


async def test_a_loop_that_stood_still_is_told(
    client: httpx.AsyncClient, services: Services, clock: ManualClock
) -> None:
    clock.advance(MAX_SILENCE_S + 1)

    answer = await client.get("/healthz/live")

    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})


async def test_probes_ask_the_store_nothing(
    client: httpx.AsyncClient,
    services: Services,
    store: StoreDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anybody may send them, as many as they like."""
    await subscribed(services, client)
    for part in vars(store):
        monkeypatch.setattr(store, part, None)

    assert (await client.get("/healthz/live")).status_code == 200
    assert (await client.get("/healthz/ready")).status_code == 200


async def test_before_its_start_and_after_its_end_a_server_is_not_ready(app: FastAPI) -> None:
    services: Services = app.state.services
    assert "serving" in services.health.not_ready()
    async with app.router.lifespan_context(app):
        assert "serving" not in services.health.not_ready()
    assert "serving" in services.health.not_ready()
