"""Quotas hold in the step that would exceed them, against a real Valkey."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from core.builders import BASE_MODEL, SESSION_ID, add_worker, model_id, sample, submission, submit
from core.test_store_checkpoints import checkpoint
from core.test_store_operations import CREATE, PASS, STEP
from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory, OverBudget, OverQuota, UserError
from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.partials import Partial, PartialToken
from cyclora_core.records import NewModel, OperationError, Submission, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.store.cancellations import CancelOutcome
from cyclora_core.store.metering import hour_of
from cyclora_core.store.operations import Outcome
from cyclora_core.types import Cycle, PlannedModel, PlannedOperation, PlannedSample
from cyclora_core.usage import Charge, Meter, Metered
from cyclora_core.waiting import Assignment, WorkerStats

UNLOAD = OperationKind.UNLOAD_MODEL
SAMPLER = ids.sampling_session_id(SESSION_ID, 0)
TOKEN = "leader"


async def tenant(store: Store, **quotas: int) -> str:
    record = await store.tenants.create("team")
    await store.tenants.update(record.tenant_id, quotas=quotas)
    return record.tenant_id


def create(tenant_id: str, number: int = 0, rank: int = 8) -> Submission:
    made = submission(CREATE, 0, tenant_id=tenant_id, owner_id=model_id(number))
    return dataclasses.replace(made, new_model=NewModel(SESSION_ID, LoraConfig(rank)))


def training(tenant_id: str, seq_id: int, tokens: int, number: int = 0) -> Submission:
    owner = model_id(number)
    return submission(PASS, seq_id, tenant_id=tenant_id, owner_id=owner, datum_tokens=[tokens])


def step(tenant_id: str, seq_id: int, kind: OperationKind = STEP) -> Submission:
    return submission(kind, seq_id, tenant_id=tenant_id)


def drawing(tenant_id: str, seq_id: int, tokens: int, num_samples: int = 1) -> Submission:
    drawn = sample(seq_id, tenant_id=tenant_id, num_tokens=tokens)
    return dataclasses.replace(drawn, num_samples=num_samples)


async def start(store: Store) -> Cycle:
    """Hand all that waits to worker-1, whatever its tenants' rates say."""
    await add_worker(store)
    await store.cycles.lead(TOKEN, 30)
    waiting = await store.cycles.gather(BASE_MODEL, 100, 100)
    assignments = [
        Assignment(
            PlannedModel(
                model.model_id,
                model.tenant_id,
                model.epoch + 1,
                [PlannedOperation(o.request_id, o.kind, o.seq_id) for o in model.operations],
            ),
            model.worker_id,
            model.epoch,
        )
        for model in waiting.models
    ]
    samples = [
        PlannedSample(o.request_id, o.tenant_id, o.owner_id, o.seq_id)
        for o in (each.operation for each in waiting.samples)
    ]
    planned = [each.planned for each in assignments]
    cycle = Cycle(0, BASE_MODEL, "worker-1", planned, samples)
    cycle_id = await store.cycles.dispatch(TOKEN, cycle, assignments, waiting.samples)
    assert isinstance(cycle_id, int)
    return dataclasses.replace(cycle, cycle_id=cycle_id)


async def finish(
    store: Store, cycle: Cycle, num_tokens: int = 0, error: OperationError | None = None
) -> None:
    """Settle all of a cycle, each pass and each sample with so many tokens."""
    outcome = Outcome(None if error else b"done", error, num_tokens)
    for model in cycle.models:
        for operation in model.operations:
            await store.operations.settle(
                worker_id="worker-1",
                epoch=model.epoch,
                tenant_id=model.tenant_id,
                base_model=BASE_MODEL,
                model_id=model.model_id,
                operation=operation,
                outcome=outcome,
            )
    for each in cycle.samples:
        await store.operations.settle_sample(
            worker_id="worker-1",
            tenant_id=each.tenant_id,
            base_model=BASE_MODEL,
            sampling_session_id=each.sampling_session_id,
            seq_id=each.seq_id,
            request_id=each.request_id,
            outcome=outcome,
        )
    await store.workers.release("worker-1", cycle.cycle_id, WorkerStats())


async def run(store: Store, num_tokens: int = 0, error: OperationError | None = None) -> None:
    await finish(store, await start(store), num_tokens, error)


async def test_what_is_queued_is_counted_until_it_is_final(store: Store) -> None:
    team = await tenant(store)
    await submit(store, create(team), training(team, 1, 30), step(team, 2), drawing(team, 1, 50, 4))

    use = await store.quotas.use(team)
    assert (use.operations, use.samples, use.tokens, use.adapters) == (4, 4, 80, 1)

    cycle = await start(store)
    assert await store.quotas.use(team) == use
    await finish(store, cycle, num_tokens=20)

    use = await store.quotas.use(team)
    assert (use.operations, use.samples, use.tokens, use.adapters) == (0, 0, 0, 1)
    assert use.tokens_today == use.tokens_this_month == 40  # the pass and the sample


async def test_a_retry_and_a_refused_body_count_nothing(store: Store) -> None:
    team = await tenant(store)
    refused = dataclasses.replace(
        training(team, 1, 30), error=OperationError("no", ErrorCategory.USER)
    )
    await submit(
        store, create(team), create(team), refused, drawing(team, 1, 9), drawing(team, 1, 9)
    )

    use = await store.quotas.use(team)

    assert (use.operations, use.tokens, use.adapters) == (2, 9, 1)


@pytest.mark.parametrize("has_started", [False, True])
async def test_a_cancelled_sample_is_queued_no_more(store: Store, has_started: bool) -> None:
    team = await tenant(store, max_concurrent_samples=1)
    await submit(store, drawing(team, 1, 10))
    if has_started:
        await start(store)

    for expected in (CancelOutcome.CANCELLED, CancelOutcome.FINAL):
        assert await store.cancellations.cancel(team, BASE_MODEL, SAMPLER, 1) is expected

    assert (await store.quotas.use(team)).operations == 0
    assert await submit(store, drawing(team, 2, 10)) == [SubmitOutcome.ACCEPTED]


async def test_what_a_stream_has_shown_is_charged_however_it_ends(
    store: Store, clock: ManualClock
) -> None:
    """Else whoever hangs up before the last token would have all of them for nothing."""
    team = await tenant(store)
    streamed = dataclasses.replace(
        drawing(team, 1, 50), num_prompt_tokens=20, key_id="key-a", project_id="paper"
    )
    await submit(store, streamed)
    await start(store)
    shown = Partial(f"{SAMPLER}:1", 0, [PartialToken(0, 5, -0.5)] * 3)
    await store.operations.show_partials("worker-1", [shown])

    for _ in range(2):
        await store.cancellations.cancel(team, BASE_MODEL, SAMPLER, 1)

    use = await store.quotas.use(team)
    assert (use.tokens_today, use.tokens_this_month, use.tokens) == (23, 23, 0)
    hour = hour_of(clock.now_ms())
    charge = Charge(BASE_MODEL, SESSION_ID, "paper", "", "key-a")
    assert await store.metering.used(team, hour, hour + 1) == [
        Metered(hour, Meter.PREFILL, charge, 20),
        Metered(hour, Meter.SAMPLED, charge, 3),
    ]
    assert await store.tenants.usage(team) == {"prefilled_tokens": 20, "sampled_tokens": 3}


async def test_samples_beyond_the_quota_come_in_when_others_have_finished(store: Store) -> None:
    team = await tenant(store, max_concurrent_samples=4)
    await submit(store, drawing(team, 1, 10, 3))

    with pytest.raises(OverQuota, match=r"3 samples are queued.*the 2 of this request.*the 4 that"):
        await submit(store, drawing(team, 2, 10, 2))
    assert await submit(store, drawing(team, 3, 10), drawing(team, 1, 10, 3)) == [
        SubmitOutcome.ACCEPTED,
        SubmitOutcome.DUPLICATE,
    ]
    await run(store)

    assert await submit(store, drawing(team, 2, 10, 2)) == [SubmitOutcome.ACCEPTED]


async def test_one_sample_comes_in_whatever_its_size(store: Store) -> None:
    team = await tenant(store, max_concurrent_samples=2, max_queued_tokens=100)

    assert await submit(store, drawing(team, 1, 1000, 16)) == [SubmitOutcome.ACCEPTED]
    with pytest.raises(OverQuota, match="max_concurrent_samples"):
        await submit(store, drawing(team, 2, 1))


async def test_training_beyond_the_quota_waits_only_while_its_model_has_work(store: Store) -> None:
    team = await tenant(store, max_queued_tokens=100)
    await submit(store, create(team), create(team, 1))
    await run(store)
    await submit(store, training(team, 1, 500))

    with pytest.raises(OverQuota, match=r"500 tokens are queued.*the 10 of.*max_queued_tokens"):
        await submit(store, training(team, 3, 10))
    # What costs nothing is never refused, nor is the only work of a model.
    accepted = await submit(store, step(team, 2), training(team, 1, 70, number=1))
    assert accepted == [SubmitOutcome.ACCEPTED] * 2
    await run(store)

    assert await submit(store, training(team, 3, 10)) == [SubmitOutcome.ACCEPTED]


async def test_all_chunks_of_one_call_come_in_together(store: Store) -> None:
    """The SDK sends the first one last, when all others were accepted: none may wait for them."""
    team = await tenant(store, max_queued_tokens=100)
    await submit(store, create(team))
    await run(store)

    chunks = [training(team, seq_id, 90) for seq_id in (3, 2, 4, 1)]

    assert await submit(store, *chunks) == [SubmitOutcome.ACCEPTED] * 4
    with pytest.raises(OverQuota):
        await submit(store, training(team, 5, 90))


async def test_what_others_wait_for_comes_in_behind_work_too(store: Store) -> None:
    team = await tenant(store, max_queued_tokens=100)
    await submit(store, create(team), step(team, 2))
    await submit(store, drawing(team, 1, 100))

    assert await submit(store, training(team, 1, 90)) == [SubmitOutcome.ACCEPTED]


async def test_holding_back_one_request_lets_no_endless_number_in(store: Store) -> None:
    team = await tenant(store, max_queued_tokens=100)
    await submit(store, create(team))
    await run(store)

    for seq_id in range(2, 258):
        await submit(store, training(team, seq_id, 90))
    with pytest.raises(OverQuota):
        await submit(store, training(team, 258, 90))
    assert (await store.quotas.use(team)).operations == 256


async def test_a_budget_counts_what_was_metered_and_what_is_queued(store: Store) -> None:
    team = await tenant(store, tokens_per_day=100)
    await submit(store, create(team), training(team, 1, 40))
    await run(store, num_tokens=40)
    await submit(store, training(team, 2, 50))

    with pytest.raises(OverBudget, match=r"is 100, of which 90 are used or queued.*up to 11"):
        await submit(store, training(team, 3, 11))
    with pytest.raises(OverBudget):
        await submit(store, drawing(team, 1, 11))

    # Work that exists can be saved: what costs no tokens is never refused.
    assert await submit(store, step(team, 3), training(team, 2, 50)) == [
        SubmitOutcome.ACCEPTED,
        SubmitOutcome.DUPLICATE,
    ]
    assert await submit(store, drawing(team, 2, 10)) == [SubmitOutcome.ACCEPTED]


async def test_requests_that_come_at_once_do_not_exceed_a_budget_together(store: Store) -> None:
    team = await tenant(store, tokens_per_month=100)

    async def attempt(seq_id: int) -> bool:
        try:
            await submit(store, drawing(team, seq_id, 30))
        except OverBudget:
            return False
        return True

    accepted = await asyncio.gather(*(attempt(seq_id) for seq_id in range(10)))

    assert sum(accepted) == 3


@pytest.mark.parametrize("quota", ["tokens_per_day", "tokens_per_month"])
async def test_a_budget_is_lifted_by_the_administrator_and_by_the_calendar(
    store: Store, clock: ManualClock, quota: str
) -> None:
    team = await tenant(store, **{quota: 100})
    await submit(store, drawing(team, 1, 100))
    await run(store, num_tokens=100)
    with pytest.raises(OverBudget, match=quota):
        await submit(store, drawing(team, 2, 100))

    await store.tenants.update(team, quotas={quota: 200})
    assert await submit(store, drawing(team, 2, 100)) == [SubmitOutcome.ACCEPTED]
    await run(store, num_tokens=100)
    with pytest.raises(OverBudget):
        await submit(store, drawing(team, 3, 200))
    clock.advance(32 * 24 * 3600)

    assert await submit(store, drawing(team, 3, 200)) == [SubmitOutcome.ACCEPTED]


async def test_a_gap_is_kept_open_for_what_a_budget_holds_back(
    store: Store, clock: ManualClock
) -> None:
    team = await tenant(store, tokens_per_day=100)
    await submit(store, create(team), training(team, 2, 60))
    await store.cycles.lead(TOKEN, 30)
    with pytest.raises(OverBudget):
        await submit(store, training(team, 1, 60))
    clock.advance(599)

    assert not await store.cycles.close_gap(TOKEN, model_id(), 0, 600)
    clock.advance(2)
    assert await store.cycles.close_gap(TOKEN, model_id(), 0, 600)
    assert (await store.quotas.use(team)).tokens == 0


async def test_failed_work_uses_no_budget(store: Store) -> None:
    team = await tenant(store, tokens_per_day=100)
    await submit(store, create(team), training(team, 1, 100))
    await run(store, num_tokens=100, error=OperationError("nan", ErrorCategory.USER))

    use = await store.quotas.use(team)

    assert (use.tokens, use.tokens_today) == (0, 0)


async def test_a_model_counts_until_it_has_ended(store: Store) -> None:
    team = await tenant(store, max_adapters=2)
    await submit(store, create(team), create(team, 1))

    with pytest.raises(UserError, match=r"2 models have not ended.*max_adapters"):
        await submit(store, create(team, 2))
    assert await store.models.get(model_id(2)) is None
    assert await submit(store, create(team)) == [SubmitOutcome.DUPLICATE]
    await submit(store, step(team, 1, UNLOAD))
    await run(store)

    assert await submit(store, create(team, 2)) == [SubmitOutcome.ACCEPTED]
    assert (await store.quotas.use(team)).adapters == 2


async def test_a_rank_beyond_the_quota_makes_no_model(store: Store) -> None:
    team = await tenant(store, max_rank=16)

    with pytest.raises(UserError, match=r"lora_rank 17.*at most 16"):
        await submit(store, create(team, rank=17))

    assert await submit(store, create(team, rank=16)) == [SubmitOutcome.ACCEPTED]


async def test_stored_bytes_are_those_of_named_checkpoints(store: Store) -> None:
    team = await tenant(store, max_stored_bytes=25)

    async def put(name: str, num_bytes: int = 10, is_listed: bool = True) -> None:
        record = checkpoint(name, tenant_id=team, num_bytes=num_bytes, is_listed=is_listed)
        assert await store.checkpoints.put(record)

    await put("a")
    await put("b")
    await put("unnamed", 1000, is_listed=False)
    with pytest.raises(UserError, match=r"20 bytes of checkpoints.*the 10 of.*max_stored_bytes"):
        await put("c")
    assert await store.checkpoints.get(checkpoint("c").path) is None
    await put("a", 15)  # in the stead of 10
    with pytest.raises(UserError):
        await put("a", 16)
    # What is stored can be changed and deleted, and makes room.
    assert await store.checkpoints.set_public(checkpoint("b").path, True)
    await store.checkpoints.delete(checkpoint("b").path)
    await put("c")

    assert (await store.quotas.use(team)).stored_bytes == 25


async def test_a_copy_counts_for_whoever_made_it(store: Store) -> None:
    team = await tenant(store, max_stored_bytes=15)
    first, second = (
        dataclasses.replace(
            checkpoint("a"),
            path=checkpoint("a").path.replace(model_id(), model_id(number)),
            model_id=model_id(number),
            tenant_id=team,
        )
        for number in (7, 8)
    )
    for _ in range(2):
        await store.copies.record(first, "tinker://source", None)

    with pytest.raises(UserError, match="max_stored_bytes"):
        await store.copies.record(second, "tinker://source", None)

    assert (await store.quotas.use(team)).stored_bytes == 10
    assert await store.models.get(model_id(8)) is None


async def allowance(store: Store, team: str) -> float | None:
    return (await store.quotas.allowances([team])).get(team)


async def test_what_starts_is_charged_to_the_rate_once(store: Store, clock: ManualClock) -> None:
    team = await tenant(store, tokens_per_minute=600)
    await submit(store, create(team), training(team, 1, 900), drawing(team, 1, 300))
    assert await allowance(store, team) == 600

    await start(store)
    assert await allowance(store, team) == -600
    # The worker dies, and another one starts the same again.
    await store.workers.retire("worker-1")
    await store.cycles.bury(TOKEN, "worker-1", BASE_MODEL)
    await start(store)
    assert await allowance(store, team) == -600
    clock.advance(30)
    assert await allowance(store, team) == -300


async def test_what_was_charged_and_not_used_is_given_back(store: Store) -> None:
    team = await tenant(store, tokens_per_minute=600)
    await submit(store, drawing(team, 1, 1000))

    await run(store, num_tokens=150)

    assert await allowance(store, team) == 450


async def test_a_rate_fills_up_to_one_minutes_tokens(store: Store, clock: ManualClock) -> None:
    team = await tenant(store, tokens_per_minute=600)
    await submit(store, drawing(team, 1, 900))
    await run(store, num_tokens=900)
    clock.advance(10 * 60)

    assert await allowance(store, team) == 600
    await submit(store, drawing(team, 2, 100))
    await start(store)
    assert await allowance(store, team) == 500


async def test_a_clock_that_is_set_back_stops_no_rate(store: Store, clock: ManualClock) -> None:
    team = await tenant(store, tokens_per_minute=600)
    await submit(store, drawing(team, 1, 900))
    await start(store)
    clock.jump_wall(-3600)

    assert await allowance(store, team) == 600


async def test_who_has_no_rate_is_charged_nothing(store: Store) -> None:
    team = await tenant(store)
    await submit(store, drawing(team, 1, 900))
    await start(store)

    assert await store.quotas.allowances([team, "nobody"]) == {}
    assert await store.quotas.rate_pause_s(team, f"{SAMPLER}:1") is None


async def test_only_what_has_not_started_waits_for_its_rate(store: Store) -> None:
    team = await tenant(store, tokens_per_minute=600)
    await submit(store, drawing(team, 1, 900))
    assert await store.quotas.rate_pause_s(team, f"{SAMPLER}:1") is None
    await start(store)
    await submit(store, drawing(team, 2, 900))

    assert await store.quotas.rate_pause_s(team, f"{SAMPLER}:1") is None
    assert await store.quotas.rate_pause_s(team, f"{SAMPLER}:2") == 30
