"""The futures hub, with every announcement made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from cyclora_core.operations import OptimStepResult
from cyclora_core.records import Future, FutureState
from cyclora_server.futures import FuturesHub
from server.doubles.builders import MODEL, SAMPLER, STRANGER, TENANT, pending
from server.doubles.queue import Futures

REQUEST = f"{MODEL}:1"
FOREVER_S = 3600.0
RESULT = OptimStepResult({})


@pytest.fixture
def futures() -> Futures:
    futures = Futures()
    futures.records[REQUEST] = pending(REQUEST)
    return futures


@pytest.fixture
async def hub(futures: Futures) -> AsyncGenerator[FuturesHub, None]:
    hub = FuturesHub(futures)
    listener = asyncio.create_task(hub.run())
    await run_until_idle()
    yield hub
    listener.cancel()


async def run_until_idle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def waiting(hub: FuturesHub, hold_s: float = FOREVER_S) -> asyncio.Task[Future | None]:
    return asyncio.create_task(hub.wait(REQUEST, TENANT, hold_s))


async def test_a_final_future_is_returned_at_once(hub: FuturesHub, futures: Futures) -> None:
    futures.settle(REQUEST, RESULT)

    future = await hub.wait(REQUEST, TENANT, FOREVER_S)

    assert future == futures.records[REQUEST]


async def test_a_poll_ends_when_its_future_is_announced(hub: FuturesHub, futures: Futures) -> None:
    poll = waiting(hub)
    await run_until_idle()
    assert not poll.done()

    futures.settle(REQUEST, RESULT)

    assert await poll == futures.records[REQUEST]


async def test_a_poll_of_a_pending_future_ends_after_its_hold(hub: FuturesHub) -> None:
    future = await hub.wait(REQUEST, TENANT, 0.0)

    assert future is not None
    assert future.state is FutureState.PENDING


async def test_an_announcement_of_another_future_ends_no_poll(
    hub: FuturesHub, futures: Futures
) -> None:
    poll = waiting(hub)
    await run_until_idle()

    futures.announce(f"{MODEL}:2")
    await run_until_idle()

    assert not poll.done()
    poll.cancel()


async def test_a_future_settled_while_its_state_is_read_is_not_missed(
    hub: FuturesHub, futures: Futures
) -> None:
    """The announcement comes between the read and the wait; the bell must already hang."""
    read: Callable[[str], Awaitable[Future | None]] = futures.get

    async def settled_behind_the_reader(request_id: str) -> Future | None:
        future = await read(request_id)
        futures.get = read
        futures.settle(REQUEST, RESULT)
        await run_until_idle()
        return future

    futures.get = settled_behind_the_reader

    future = await asyncio.wait_for(hub.wait(REQUEST, TENANT, FOREVER_S), 10)

    assert future is not None
    assert future.state is FutureState.DONE


async def test_one_poll_giving_up_does_not_strand_the_other(
    hub: FuturesHub, futures: Futures
) -> None:
    impatient, patient = waiting(hub), waiting(hub)
    await run_until_idle()
    impatient.cancel()
    await run_until_idle()

    futures.settle(REQUEST, RESULT)

    assert await patient == futures.records[REQUEST]


async def test_polls_that_ended_leave_nothing_behind(hub: FuturesHub, futures: Futures) -> None:
    polls = [waiting(hub), waiting(hub)]
    await run_until_idle()
    assert hub.num_waiting == 2
    polls[0].cancel()
    futures.settle(REQUEST, RESULT)
    await run_until_idle()

    assert hub.num_waiting == 0


async def test_a_gap_in_the_announcements_makes_every_poll_look_again(
    hub: FuturesHub, futures: Futures
) -> None:
    poll = waiting(hub)
    await run_until_idle()
    futures.settle(REQUEST, RESULT, announced=False)

    futures.announce("")

    assert await poll == futures.records[REQUEST]


async def test_a_stranger_waits_for_nothing_and_learns_nothing(
    hub: FuturesHub, futures: Futures
) -> None:
    futures.settle(REQUEST, RESULT)

    assert await hub.wait(REQUEST, STRANGER, FOREVER_S) is None
    assert await hub.wait(f"{MODEL}:9", TENANT, FOREVER_S) is None
    assert REQUEST in futures.records


async def test_closing_answers_held_polls_with_what_is(hub: FuturesHub) -> None:
    poll = waiting(hub)
    await run_until_idle()

    hub.close()

    future = await poll
    assert future is not None
    assert future.state is FutureState.PENDING


async def test_after_closing_nothing_is_held(hub: FuturesHub) -> None:
    hub.close()

    future = await asyncio.wait_for(hub.wait(REQUEST, TENANT, FOREVER_S), 10)

    assert future is not None


async def test_a_session_poller_wakes_for_samples_of_its_own_clone_only(
    hub: FuturesHub, futures: Futures
) -> None:
    ours, other = f"{SAMPLER}:2000000001", f"{SAMPLER}:5"
    futures.records |= {each: pending(each) for each in (ours, other)}
    poll = asyncio.create_task(hub.wait_completions(SAMPLER, 2, 0, FOREVER_S))
    await run_until_idle()
    futures.settle(other, RESULT)
    await run_until_idle()
    assert not poll.done()

    futures.settle(ours, RESULT)

    assert [each.request_id for each in await poll] == [ours]


async def test_a_session_poller_gets_only_what_is_after_its_cursor(
    hub: FuturesHub, futures: Futures
) -> None:
    for seq_id in range(3):
        request_id = f"{SAMPLER}:{seq_id}"
        futures.records[request_id] = pending(request_id)
        futures.settle(request_id, RESULT)

    found = await hub.wait_completions(SAMPLER, 0, 1, FOREVER_S)

    assert [each.cursor for each in found] == [2, 3]


async def test_a_session_poller_without_completions_ends_after_its_hold(hub: FuturesHub) -> None:
    assert await hub.wait_completions(SAMPLER, 0, 0, 0.0) == []


class BreakingFutures(Futures):
    """A subscription that fails once and then works."""

    def __init__(self) -> None:
        super().__init__()
        self.num_subscriptions = 0

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[AsyncIterator[str], None]:
        self.num_subscriptions += 1
        if self.num_subscriptions == 1:
            raise ConnectionError("lost")
        async with super().subscribe() as announcements:
            yield announcements


async def test_a_failed_subscription_is_logged_and_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cyclora_server.futures._RESUBSCRIBE_PAUSE_S", 0.0)
    futures = BreakingFutures()
    futures.records[REQUEST] = pending(REQUEST)
    hub = FuturesHub(futures)
    poll = waiting(hub)
    with capture_logs() as logs:
        listener = asyncio.create_task(hub.run())
        await run_until_idle()

    futures.settle(REQUEST, RESULT)

    assert await poll == futures.records[REQUEST]
    assert [each["log_level"] for each in logs] == ["error"]
    listener.cancel()
