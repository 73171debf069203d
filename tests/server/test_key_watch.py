"""What becomes of requests that are held when their key ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message

from cyclora_core.accounts import KeyHolder
from cyclora_core.clock import ManualClock
from cyclora_core.errors import Forbidden, Unauthorized
from cyclora_server.held_response import HeldResponse
from cyclora_server.key_watch import Hold, KeyWatch
from cyclora_server.problems import InvalidToken
from cyclora_server.settings import Settings
from server.doubles.builders import KEY, MODEL, SAMPLER, TENANT, model_record, pending
from server.doubles.store import StoreDouble

ENDINGS: dict[str, tuple[Callable[[StoreDouble], None], type[Exception]]] = {
    "revoked": (lambda store: store.api_keys.change(KEY, revoked_at_ms=1), Unauthorized),
    "expired": (lambda store: store.api_keys.change(KEY, expires_at_ms=1), Unauthorized),
    "disabled": (lambda store: store.tenants.change(TENANT, is_enabled=False), Forbidden),
}


@pytest.fixture
def settings() -> Settings:
    return Settings(poll_hold_s=30.0)


@pytest.fixture
def watch(store: StoreDouble, clock: ManualClock) -> KeyWatch:
    return KeyWatch(store.api_keys, clock)


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("how", ENDINGS)
async def test_a_wait_ends_with_its_key(watch: KeyWatch, store: StoreDouble, how: str) -> None:
    end, error = ENDINGS[how]

    async def wait() -> None:
        with watch.holding("key-a") as hold:
            async with hold.waiting():
                await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await watch.look()
    assert not task.done()
    end(store)
    await watch.look()

    with pytest.raises(error):
        await task


async def test_a_wait_that_is_over_leaves_nothing_behind(
    watch: KeyWatch, store: StoreDouble
) -> None:
    with watch.holding("key-a") as hold:
        async with hold.waiting():
            pass
    ENDINGS["revoked"][0](store)

    await watch.look()

    hold.check()


async def test_a_request_between_two_waits_hears_of_it_at_the_next(
    watch: KeyWatch, store: StoreDouble
) -> None:
    with watch.holding("key-a", is_token=True) as hold:
        ENDINGS["revoked"][0](store)
        await watch.look()
        with pytest.raises(InvalidToken):
            async with hold.waiting():
                raise AssertionError("it must not begin to wait")


async def test_a_wait_may_have_a_bound_of_its_own(watch: KeyWatch) -> None:
    with watch.holding("key-a") as hold, pytest.raises(TimeoutError):
        async with hold.waiting(), asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_one_look_asks_once_for_every_key_however_much_is_held(
    watch: KeyWatch, store: StoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    find = store.api_keys.find

    async def counted(key_ids: Any) -> Any:
        asked.append(key_ids)
        return await find(key_ids)

    monkeypatch.setattr(store.api_keys, "find", counted)
    await watch.look()
    with watch.holding("key-a"), watch.holding("key-a"), watch.holding("key-b"):
        await watch.look()

    assert asked == [["key-a", "key-b"]]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("retrieve_future", {"request_id": f"{MODEL}:1"}),
        ("retrieve_futures", {"target": {"sampling_session_id": SAMPLER}}),
    ],
)
async def test_a_held_poll_is_refused_within_a_second_of_the_revocation(
    app: FastAPI, client: httpx.AsyncClient, store: StoreDouble, route: str, body: dict[str, Any]
) -> None:
    store.models.records[MODEL] = model_record()
    store.futures.records[f"{MODEL}:1"] = pending(f"{MODEL}:1")
    hub = app.state.services.hub
    poll = asyncio.create_task(client.post(f"/api/v1/{route}", json=body))
    await wait_for(lambda: hub.num_waiting == 1)

    await store.api_keys.revoke("key-a", "key-admin")
    async with asyncio.timeout(1):
        answer = await poll

    assert answer.status_code == 401
    assert "revoked" in answer.json()["detail"]
    assert hub.num_waiting == 0


async def test_a_download_breaks_off_when_its_key_ends(watch: KeyWatch, store: StoreDouble) -> None:
    sent: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        ENDINGS["revoked"][0](store)
        await watch.look()
        yield b"two"

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    response = HeldResponse(StreamingResponse(pieces()), watch, "key-a")
    with pytest.raises(ClientDisconnect):
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    assert b"one" in sent
    assert b"two" not in sent


async def test_a_request_that_comes_during_a_look_is_not_judged_by_it(
    watch: KeyWatch, store: StoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = store.api_keys.find
    with ExitStack() as held:

        async def find_while_another_comes(key_ids: Sequence[str]) -> list[KeyHolder]:
            found = await find(key_ids)
            late.append(held.enter_context(watch.holding("key-b")))
            return found

        late: list[Hold] = []
        monkeypatch.setattr(store.api_keys, "find", find_while_another_comes)
        held.enter_context(watch.holding("key-a"))
        await watch.look()

        late[0].check()


async def test_a_wait_that_is_slow_to_end_is_ended_once(
    watch: KeyWatch, store: StoreDouble
) -> None:
    async def wait() -> None:
        with watch.holding("key-a") as hold:
            async with hold.waiting():
                await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    ENDINGS["revoked"][0](store)
    await watch.look()
    await watch.look()

    with pytest.raises(Unauthorized):
        await task
