"""Cancelled samples end in the store, wherever they stand, and never run again."""

from __future__ import annotations

from core.builders import BASE_MODEL, SESSION_ID, add_worker, sample, submit
from cyclora_core import ids
from cyclora_core.errors import ErrorCategory
from cyclora_core.records import FutureState, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.store.cancellations import CancelOutcome
from cyclora_core.store.operations import Outcome, SettleOutcome
from cyclora_core.types import Cycle, PlannedSample

SAMPLER = ids.sampling_session_id(SESSION_ID, 0)
TOKEN = "leader"


async def cancel(store: Store, seq_id: int = 1) -> CancelOutcome:
    return await store.cancellations.cancel("tenant-a", BASE_MODEL, SAMPLER, seq_id)


async def waiting(store: Store) -> list[int]:
    gathered = await store.cycles.gather(BASE_MODEL, 10, 10)
    return [each.operation.seq_id for each in gathered.samples]


async def run_all(store: Store) -> None:
    """Hand everything that waits to worker-1."""
    await add_worker(store)
    await store.cycles.lead(TOKEN, 30.0)
    samples = (await store.cycles.gather(BASE_MODEL, 10, 10)).samples
    planned = [
        PlannedSample(o.request_id, o.tenant_id, o.owner_id, o.seq_id)
        for o in (each.operation for each in samples)
    ]
    cycle = Cycle(0, BASE_MODEL, "worker-1", [], planned)
    assert await store.cycles.dispatch(TOKEN, cycle, [], samples) == 1


async def settle(store: Store, seq_id: int = 1) -> SettleOutcome:
    return await store.operations.settle_sample(
        worker_id="worker-1",
        tenant_id="tenant-a",
        base_model=BASE_MODEL,
        sampling_session_id=SAMPLER,
        seq_id=seq_id,
        request_id=f"{SAMPLER}:{seq_id}",
        outcome=Outcome(b"result"),
    )


async def test_a_sample_that_waits_leaves_its_queue(store: Store) -> None:
    await submit(store, sample(1), sample(2))

    assert await cancel(store) is CancelOutcome.CANCELLED

    assert await waiting(store) == [2]
    future = await store.futures.get(f"{SAMPLER}:1")
    assert future is not None
    assert future.error is not None
    assert (future.state, future.error.category) == (FutureState.FAILED, ErrorCategory.USER)
    assert future.error.message == "the sample was cancelled by its client"


async def test_the_last_one_that_leaves_leaves_an_empty_queue(store: Store) -> None:
    await submit(store, sample(1))

    await cancel(store)

    assert (await store.cycles.gather(BASE_MODEL, 10, 10)).is_empty


async def test_the_poller_of_its_client_sees_it_fail(store: Store) -> None:
    await submit(store, sample(1))

    await cancel(store)

    (completion,) = await store.futures.completions(SAMPLER, 0, 0)
    assert (completion.request_id, completion.state) == (f"{SAMPLER}:1", FutureState.FAILED)


async def test_a_running_sample_is_announced_to_its_worker_until_heeded(store: Store) -> None:
    await submit(store, sample(1), sample(2))
    await run_all(store)

    assert await cancel(store) is CancelOutcome.CANCELLED

    assert await store.cancellations.of_worker("worker-1") == [f"{SAMPLER}:1"]
    await store.cancellations.heeded("worker-1", [f"{SAMPLER}:1"])
    assert await store.cancellations.of_worker("worker-1") == []


async def test_what_its_worker_brings_afterwards_is_not_taken(store: Store) -> None:
    await submit(store, sample(1))
    await run_all(store)
    await cancel(store)

    assert await settle(store) is SettleOutcome.ALREADY

    future = await store.futures.get(f"{SAMPLER}:1")
    assert future is not None
    assert (future.state, future.result) == (FutureState.FAILED, None)


async def test_it_does_not_come_back_when_its_worker_dies(store: Store) -> None:
    await submit(store, sample(1), sample(2))
    await run_all(store)
    await cancel(store)
    await store.workers.retire("worker-1")

    assert await store.cycles.bury(TOKEN, "worker-1", BASE_MODEL)

    assert await waiting(store) == [2]
    assert await store.cancellations.of_worker("worker-1") == []


async def test_cancelling_again_or_too_late_changes_nothing(store: Store) -> None:
    await submit(store, sample(1), sample(2))
    await run_all(store)
    await settle(store, 2)
    await cancel(store)

    assert await cancel(store) is CancelOutcome.FINAL
    assert await cancel(store, 2) is CancelOutcome.FINAL

    future = await store.futures.get(f"{SAMPLER}:2")
    assert future is not None
    assert (future.state, future.result) == (FutureState.DONE, b"result")
    assert len(await store.futures.completions(SAMPLER, 0, 0)) == 2


async def test_a_late_retry_of_a_cancelled_sample_finds_that_it_ended(store: Store) -> None:
    await submit(store, sample(1))
    await cancel(store)

    assert await submit(store, sample(1)) == [SubmitOutcome.DUPLICATE]
    assert await waiting(store) == []


async def test_cancelling_what_never_was_leaves_its_number_free(store: Store) -> None:
    assert await cancel(store) is CancelOutcome.UNKNOWN

    assert await submit(store, sample(1)) == [SubmitOutcome.ACCEPTED]


async def test_a_clones_sample_ends_among_the_clones_completions(store: Store) -> None:
    seq_id = 3_000_000_001
    await submit(store, sample(seq_id))

    await cancel(store, seq_id)

    assert await store.futures.completions(SAMPLER, 0, 0) == []
    assert len(await store.futures.completions(SAMPLER, 3, 0)) == 1
