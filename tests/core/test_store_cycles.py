"""Leading, dispatching, claiming and burying, against a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from core.builders import BASE_MODEL, add_worker, model_id, sample, submission, submit
from core.test_store_operations import CREATE, PASS, assign, gathered, settle
from cyclora_core import ids
from cyclora_core.errors import FencedOut, ServerError
from cyclora_core.records import FutureState, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.store.connection import Connection
from cyclora_core.store.cycles import DispatchOutcome
from cyclora_core.store.operations import Outcome, SettleOutcome
from cyclora_core.types import Cycle, PlannedSample
from cyclora_core.waiting import WaitingSample, WorkerStats


class LoseAnswers(Protocol):
    """Names the script whose answer is lost, and what happens before it is asked again."""

    def __call__(
        self, lost: str, between: Callable[[], Awaitable[object]] | None = None
    ) -> None: ...


def sample_cycle(samples: Sequence[WaitingSample], worker_id: str = "worker-1") -> Cycle:
    planned = [
        PlannedSample(o.request_id, o.tenant_id, o.owner_id, o.seq_id)
        for o in (each.operation for each in samples)
    ]
    return Cycle(0, BASE_MODEL, worker_id, [], planned)


async def dispatch_samples(
    store: Store, worker_id: str = "worker-1", token: str = "t"
) -> int | DispatchOutcome:
    await store.cycles.lead(token, 30)
    waiting = await gathered(store)
    cycle = sample_cycle(waiting.samples, worker_id)
    return await store.cycles.dispatch(token, cycle, [], waiting.samples)


async def settle_sample(
    store: Store, worker_id: str, seq_id: int = 1, num_cached_tokens: int = 0
) -> SettleOutcome:
    owner = sample(seq_id).owner_id
    return await store.operations.settle_sample(
        worker_id=worker_id,
        tenant_id="tenant-a",
        base_model=BASE_MODEL,
        sampling_session_id=owner,
        seq_id=seq_id,
        request_id=ids.request_id(owner, seq_id),
        outcome=Outcome(b"tokens", num_tokens=3),
        num_prefilled_tokens=4,
        num_cached_tokens=num_cached_tokens,
    )


async def test_only_one_scheduler_leads_until_its_lease_ends(store: Store) -> None:
    assert await store.cycles.lead("first", 0.05)
    assert not await store.cycles.lead("second", 30)

    async with asyncio.timeout(5):
        while not await store.cycles.lead("second", 30):
            pass

    assert not await store.cycles.lead("first", 30)


async def test_a_leader_that_looks_again_writes_only_once_a_quarter_of_its_lease_is_over(
    store: Store, redis_url: str
) -> None:
    await store.cycles.lead("first", 100)
    key = store.cycles._keys.leader()  # pyright: ignore[reportPrivateUsage]
    async with Redis.from_url(redis_url) as raw:
        left_ms: list[int] = []
        for passed_to_ms in (80_000, 70_000):
            await raw.pexpire(key, passed_to_ms)
            assert await store.cycles.lead("first", 100)
            left_ms.append(await raw.pttl(key))

    assert left_ms[0] <= 80_000
    assert 95_000 < left_ms[1] <= 100_000


async def test_a_scheduler_that_does_not_lead_dispatches_nothing(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await store.cycles.lead("leader", 30)

    assert await dispatch_samples(store, token="other") is DispatchOutcome.NOT_LEADER
    assert len((await gathered(store)).samples) == 1


async def test_a_busy_worker_gets_no_second_cycle(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    assert await dispatch_samples(store) == 1
    await submit(store, sample(2))

    assert await dispatch_samples(store) is DispatchOutcome.BUSY
    await store.workers.release("worker-1", 1, WorkerStats())
    assert await dispatch_samples(store) == 2


async def test_releasing_an_old_cycle_again_does_not_free_the_worker(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)
    await store.workers.release("worker-1", 1, WorkerStats())
    await submit(store, sample(2))
    await dispatch_samples(store)

    await store.workers.release("worker-1", 1, WorkerStats())

    assert [worker.is_free for worker in await store.cycles.workers()] == [False]


async def test_a_claimed_cycle_is_found_again_until_it_is_released(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)

    claims = [await store.workers.claim("worker-1", 0, 0) for _ in range(2)]

    assert [claim.cycle_id if claim else None for claim in claims] == [1, 1]
    assert await store.workers.claim("worker-1", 1, 0) is None


async def test_claiming_waits_until_a_cycle_is_dispatched(store: Store) -> None:
    await add_worker(store)
    claiming = asyncio.create_task(store.workers.claim("worker-1", 0, 20))
    await submit(store, sample(1))
    await dispatch_samples(store)

    cycle = await asyncio.wait_for(claiming, 5)

    assert cycle is not None
    assert [each.seq_id for each in cycle.samples] == [1]


async def test_a_dead_worker_loses_its_samples_to_the_head_of_the_queue(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1), sample(2))
    await dispatch_samples(store)
    await submit(store, sample(3))
    await add_worker(store, "worker-2", "worker")  # the same name: the first one is dead

    assert await store.cycles.bury("t", "worker-1", BASE_MODEL)

    seq_ids = [s.operation.seq_id for s in (await gathered(store)).samples]
    assert seq_ids == [1, 2, 3]
    await dispatch_samples(store, "worker-2")
    with pytest.raises(FencedOut):
        await settle_sample(store, "worker-1")
    assert await settle_sample(store, "worker-2") is SettleOutcome.SETTLED


@pytest.fixture
def answers_lost(monkeypatch: pytest.MonkeyPatch) -> LoseAnswers:
    """Have a script run again with the same arguments, as when its answer was lost."""
    run = Connection.run

    def lose(lost: str, between: Callable[[], Awaitable[object]] | None = None) -> None:
        async def twice(self: Connection, script: str, keys: Any, args: Any) -> Any:
            reply = await run(self, script, keys, args)
            if script == lost:
                if between is not None:
                    await between()
                reply = await run(self, script, keys, args)
            return reply

        monkeypatch.setattr(Connection, "run", twice)

    return lose


async def test_a_burial_whose_answer_was_lost_queues_each_sample_once(
    store: Store, answers_lost: LoseAnswers
) -> None:
    await add_worker(store)
    await submit(store, sample(1), sample(2))
    await dispatch_samples(store)
    await add_worker(store, "worker-2", "worker")

    answers_lost("bury")
    assert await store.cycles.bury("t", "worker-1", BASE_MODEL)

    seq_ids = [s.operation.seq_id for s in (await gathered(store)).samples]
    assert seq_ids == [1, 2]


async def test_a_registration_whose_answer_was_lost_keeps_the_cycle_given_meanwhile(
    store: Store, answers_lost: LoseAnswers
) -> None:
    await submit(store, sample(1))

    answers_lost("register_worker", lambda: dispatch_samples(store))
    await add_worker(store)

    cycle = await store.workers.claim("worker-1", 0, 0)
    assert cycle is not None
    assert [each.seq_id for each in cycle.samples] == [1]


async def test_a_worker_that_is_alive_is_not_buried(store: Store) -> None:
    await add_worker(store)
    await store.cycles.lead("t", 30)

    assert not await store.cycles.bury("t", "worker-1", BASE_MODEL)
    assert await store.workers.renew("worker-1", 30)


async def test_a_buried_worker_cannot_renew_its_lease(store: Store) -> None:
    await add_worker(store)
    await add_worker(store, "worker-2", "worker")
    await store.cycles.lead("t", 30)
    await store.cycles.bury("t", "worker-1", BASE_MODEL)

    assert not await store.workers.renew("worker-1", 30)


async def test_nothing_a_buried_worker_says_brings_it_back(store: Store) -> None:
    await add_worker(store)
    await add_worker(store, "worker-2", "worker")
    await store.cycles.lead("t", 30)
    await store.cycles.bury("t", "worker-1", BASE_MODEL)

    await store.workers.report("worker-1", WorkerStats())
    await store.workers.release("worker-1", 1, WorkerStats())

    assert not await store.workers.renew("worker-1", 30)
    assert [status.worker_id for status in await store.workers.list()] == ["worker-2"]


async def test_listing_workers_asks_the_store_as_often_for_many_as_for_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler lists them at every look; asked one by one, many would make it slow."""
    num_sent = 0
    send = AbstractConnection.send_packed_command

    async def counted(self: AbstractConnection, *args: Any, **kwargs: Any) -> None:
        nonlocal num_sent
        num_sent += 1
        await send(self, *args, **kwargs)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    await add_worker(store, "worker-1", "one")
    num_sent = 0
    await store.workers.list()
    num_sent_for_one = num_sent
    for i in range(2, 6):
        await add_worker(store, f"worker-{i}", f"name-{i}")
    num_sent = 0
    found = await store.workers.list()

    assert [status.worker_id for status in found if status.is_alive] == [
        f"worker-{i}" for i in range(1, 6)
    ]
    assert num_sent == num_sent_for_one == 2
    num_sent = 0
    assert [status.worker_id for status in await store.workers.list()] == [
        status.worker_id for status in found
    ]
    assert num_sent == 1


async def test_a_model_dispatched_from_an_outdated_look_is_stale(store: Store) -> None:
    await add_worker(store)
    await add_worker(store, "worker-2", "other")
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    before = await gathered(store)
    await assign(store)

    model = before.models[0]
    from cyclora_core.types import PlannedModel, PlannedOperation
    from cyclora_core.waiting import Assignment

    operation = PlannedOperation(model.operations[0].request_id, CREATE, 0)
    planned = PlannedModel(model.model_id, model.tenant_id, 1, [operation])
    cycle = Cycle(0, BASE_MODEL, "worker-2", [planned], [])
    outcome = await store.cycles.dispatch("t", cycle, [Assignment(planned, None, 0)], [])

    assert outcome is DispatchOutcome.STALE


async def test_completions_follow_a_cursor_and_acknowledged_results_fade(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1), sample(2))
    await dispatch_samples(store)
    await settle_sample(store, "worker-1", 2)
    await settle_sample(store, "worker-1", 1)
    owner = sample(1).owner_id

    first, second = await store.futures.completions(owner, 0, 0)

    assert [first.request_id, second.request_id] == [f"{owner}:2", f"{owner}:1"]
    assert await store.futures.completions(owner, 0, first.cursor) == [second]
    assert second.state is FutureState.DONE
    await store.futures.acknowledge([f"{owner}:2", f"{owner}:9"])
    assert await store.futures.get(f"{owner}:2") is not None


async def test_a_settled_future_is_announced(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)

    async with store.futures.subscribe() as announcements, asyncio.timeout(5):
        assert await anext(announcements) == ""
        await settle_sample(store, "worker-1")
        assert await anext(announcements) == f"{sample(1).owner_id}:1"


async def test_a_gap_that_is_given_up_fails_what_waits_behind_it_and_the_model_goes_on(
    store: Store,
) -> None:
    await store.cycles.lead("t", 30)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), submission(PASS, 3))
    await submit(store, submission(PASS, 5))

    assert await store.cycles.gaps() == {model_id(): 1}
    assert await store.cycles.close_gap("t", model_id(), 1, 100)

    future = await store.futures.get(f"{model_id()}:3")
    assert future is not None
    assert future.error is not None
    assert "request 2 of this model did not arrive within 100 s" in future.error.message
    late, following = await submit(store, submission(PASS, 2), submission(PASS, 6))
    assert (late, following) == (SubmitOutcome.EXPIRED, SubmitOutcome.ACCEPTED)
    waiting = await gathered(store)
    assert [operation.seq_id for operation in waiting.models[0].operations] == [0, 1, 6]
    assert await store.cycles.gaps() == {}


async def test_a_given_up_gap_leaves_no_bodies_behind(store: Store) -> None:
    await store.cycles.lead("t", 30)
    await submit(store, submission(CREATE, 0), submission(PASS, 2))

    await store.cycles.close_gap("t", model_id(), 0, 100)

    with pytest.raises(ServerError, match="missing"):
        await store.operations.bodies([f"{model_id()}:2"])


async def test_a_gap_directly_behind_create_model_is_named_by_its_number(store: Store) -> None:
    await store.cycles.lead("t", 30)
    await submit(store, submission(CREATE, 0), submission(PASS, 2))

    await store.cycles.close_gap("t", model_id(), 0, 7)

    future = await store.futures.get(f"{model_id()}:2")
    assert future is not None
    assert future.error is not None
    assert "request 1 of this model did not arrive within 7 s" in future.error.message


async def test_a_gap_that_was_filled_meanwhile_is_not_closed_nor_is_the_next(store: Store) -> None:
    await store.cycles.lead("t", 30)
    await submit(store, submission(CREATE, 0), submission(PASS, 2), submission(PASS, 4))
    (gap,) = (await store.cycles.gaps()).items()
    await submit(store, submission(PASS, 1))

    assert not await store.cycles.close_gap("t", *gap, 100)

    assert await store.cycles.gaps() == {model_id(): 2}
    future = await store.futures.get(f"{model_id()}:4")
    assert future is not None
    assert future.state is FutureState.PENDING


async def test_only_the_leader_closes_gaps(store: Store) -> None:
    await store.cycles.lead("t", 30)
    await submit(store, submission(CREATE, 0), submission(PASS, 2))

    assert not await store.cycles.close_gap("other", model_id(), 0, 100)


async def test_the_request_that_others_wait_for_is_known(store: Store) -> None:
    await submit(store, submission(CREATE, 0))
    assert not await store.gaps.is_awaited(model_id(), 1)
    await submit(store, submission(PASS, 3))

    awaited = [seq_id for seq_id in range(6) if await store.gaps.is_awaited(model_id(), seq_id)]

    assert awaited == [1]
    assert not await store.gaps.is_awaited(model_id(7), 1)


async def test_an_idle_model_goes_on_after_a_gap(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    await submit(store, submission(PASS, 2))

    assert await store.cycles.close_gap("t", model_id(), 0, 5)

    await submit(store, submission(PASS, 3))
    waiting = await gathered(store)
    assert [operation.seq_id for operation in waiting.models[0].operations] == [3]


async def test_who_resigns_leaves_the_lead_to_a_standby(store: Store) -> None:
    await store.cycles.lead("first", 30)

    assert await store.cycles.resign("first")

    await asyncio.wait_for(store.cycles.wait_for_vacancy(30), 5)
    assert await store.cycles.lead("second", 30)


async def test_who_does_not_lead_resigns_nothing(store: Store) -> None:
    await store.cycles.lead("first", 30)

    assert not await store.cycles.resign("second")
    assert not await store.cycles.lead("second", 30)


async def test_a_seq_id_far_ahead_is_refused(store: Store) -> None:
    outcomes = await submit(store, submission(CREATE, 0), submission(PASS, 2_000_000_000))

    assert outcomes[1] is SubmitOutcome.TOO_FAR
