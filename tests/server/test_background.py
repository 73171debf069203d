"""Work beside the requests: it is finished when the server ends, unless that takes too long."""

from __future__ import annotations

import asyncio

from cyclora_server.background import Background


async def test_what_is_soon_done_is_waited_for() -> None:
    background, done = Background(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    background.start(work())
    await background.finish(timeout_s=5)

    assert done.is_set()


async def test_what_never_ends_is_cancelled_after_the_grace() -> None:
    background, cancelled = Background(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    background.start(work())
    await background.finish(timeout_s=0.01)

    assert cancelled.is_set()


async def test_a_failure_ends_neither_the_others_nor_the_wait() -> None:
    background, done = Background(), asyncio.Event()

    async def fails() -> None:
        raise ConnectionError("no store")

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    background.start(fails())
    background.start(work())
    await background.finish(timeout_s=5)

    assert done.is_set()
