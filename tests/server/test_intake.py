from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.errors import Overloaded
from cyclora_server.intake import BodyMemory, TooSlow, in_time
from cyclora_server.services import Services
from server.doubles.builders import SESSION, STRANGER_KEY, TENANT

LIMIT = 1000


async def silent_after(*chunks: bytes) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        yield chunk
    await asyncio.Event().wait()


async def all_of(*chunks: bytes) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_body_that_comes_whole_is_passed_on() -> None:
    assert [chunk async for chunk in in_time(all_of(b"a", b"bc"), 1.0)] == [b"a", b"bc"]


async def test_a_client_that_falls_silent_is_given_up() -> None:
    coming = in_time(silent_after(b"abc"), 0.01)

    assert await anext(coming) == b"abc"
    with pytest.raises(TooSlow, match="3 bytes"):
        await anext(coming)


async def test_time_spent_on_a_chunk_is_not_the_clients() -> None:
    loop = asyncio.get_running_loop()
    coming = in_time(all_of(b"a", b"b"), 0.02)
    await anext(coming)
    until_s = loop.time() + 0.03
    while loop.time() < until_s:  # busy, as with a slow disk
        pass

    assert await anext(coming) == b"b"


def test_what_is_held_is_counted_until_it_is_released() -> None:
    memory = BodyMemory(LIMIT)
    held = memory.hold("tenant-a")
    held.take(100)
    held.take(50)

    assert memory.held_bytes == 150
    held.release()
    held.release()
    assert memory.held_bytes == 0


def test_bodies_beyond_the_bound_are_told_to_come_back_and_take_nothing() -> None:
    memory = BodyMemory(LIMIT)
    memory.hold("tenant-a").take(500)
    memory.hold("tenant-b").take(400)

    with pytest.raises(Overloaded, match="all requests"):
        memory.hold("tenant-b").take(101)
    assert memory.held_bytes == 900


def test_one_tenant_leaves_half_of_it_to_the_others() -> None:
    memory = BodyMemory(LIMIT)
    for _ in range(5):
        memory.hold("tenant-a").take(100)

    with pytest.raises(Overloaded, match="your requests"):
        memory.hold("tenant-a").take(1)
    memory.hold("tenant-b").take(500)


async def test_an_answered_request_holds_nothing_whatever_its_answer(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    services: Services = app.state.services
    for content in (b"{}", b"no json", b"x" * 9000):
        await client.post("/api/v1/session_heartbeat", content=content)

    assert services.bodies.held_bytes == 0


async def test_a_request_without_room_is_back_pressure(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    services: Services = app.state.services
    limit = services.settings.max_bodies_bytes
    others = [services.bodies.hold(f"tenant-{i}") for i in range(2)]
    for other in others:
        other.take(limit // 2)

    refused = await client.post("/api/v1/session_heartbeat", json={"session_id": "x"})

    assert refused.status_code == 429
    for other in others:
        other.release()


async def test_the_bodies_of_one_tenant_leave_room_for_those_of_another(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    services: Services = app.state.services
    of_tenant = services.bodies.hold(TENANT)
    of_tenant.take(services.settings.max_bodies_bytes // 2)
    body = {"session_id": SESSION}

    refused = await client.post("/api/v1/session_heartbeat", json=body)
    client.headers["X-API-Key"] = STRANGER_KEY
    heard = await client.post("/api/v1/session_heartbeat", json=body)

    assert refused.status_code == 429
    assert heard.status_code == 404
    of_tenant.release()
