"""The worker around its engine: cycles executed, settled, replayed and snapshotted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclora_core import ids, payload
from cyclora_core.clock import ManualClock
from cyclora_core.operations import (
    LoadWeightsBody,
    LoraConfig,
    OperationKind,
    OptimStepBody,
    PassBody,
    PassResult,
    SaveWeightsBody,
)
from cyclora_core.records import FutureState
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_core.store import Store
from cyclora_workers.base_model import BaseModel
from workers.builders import cross_entropy, policy_body, with_prompts
from workers.harness import LORA, SESSION_ID, Harness, run_steps, same

DEADLINE_S = 60.0


async def test_pipelined_steps_settle_with_their_cycles_in_the_metrics(harness: Harness) -> None:
    results = await run_steps(harness, 0)

    cycles = [result.metrics["clock_cycle:unique"] for result in results]
    assert np.diff(cycles).tolist() == [1, 1, 1, 1]
    assert results[-1].metrics["loss:sum"] != results[0].metrics["loss:sum"]


async def test_a_tenant_gets_the_same_bits_alone_and_beside_three_others(
    harness: Harness,
) -> None:
    alone = await run_steps(harness, 0)
    for model, rank in ((1, 2), (2, 16), (3, 8)):
        await harness.create(model, LoraConfig(rank, seed=model), tenant=f"tenant-{model}")
        for step in range(6):
            body = policy_body("ppo", [1 + 11 * model, 2], seed=step)
            await harness.train(body, model, f"tenant-{model}")

    beside = await run_steps(harness, 4)

    assert all(same(a, b) for a, b in zip(alone, beside, strict=True))


@pytest.mark.parametrize(
    "body",
    [cross_entropy([120] * 40, seed=2), with_prompts(cross_entropy([120] * 80, seed=2), 80, 64)],
    ids=["plain", "one prompt"],
)
async def test_an_operation_spread_over_cycles_gives_the_same_bits(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel, body: PassBody
) -> None:
    results: list[list[PassResult]] = []
    for model, budget in enumerate((1_000_000, 2048)):
        harness = Harness(store, clock, tmp_path, base_model, min_cycle_tokens=budget)
        await harness.start_worker()
        await store.cycles.lead(harness.scheduler._token, 0.001)  # pyright: ignore[reportPrivateUsage]
        await harness.create(model)
        requests = [await harness.train(body, model) for _ in range(2)]
        while not await harness.scheduler.tick():
            clock.advance(1)
        await harness.workers[-1].run_until_idle()
        await harness.run_until_idle()
        results.append([await harness.pass_result(request) for request in requests])

    whole, spread = results
    assert all(same(a, b) for a, b in zip(whole, spread, strict=True))
    cycles = [result.metrics["clock_cycle:unique"] for result in spread]
    assert cycles[1] - cycles[0] == 3


async def test_a_step_that_arrives_during_its_passes_joins_their_cycle(harness: Harness) -> None:
    await harness.create()
    await harness.run_until_idle()
    body = cross_entropy([5, 6])
    first = await harness.submit(OperationKind.FORWARD_BACKWARD, body)
    assert await harness.scheduler.tick() == 1
    save = await harness.save("late")

    await harness.workers[-1].run_until_idle()

    assert (await harness.future(first)).state is FutureState.DONE
    assert (await harness.future(save)).state is FutureState.DONE


async def test_a_worker_that_was_replaced_settles_nothing(harness: Harness) -> None:
    await harness.create()
    await harness.run_until_idle()
    request = await harness.train(cross_entropy([5]))
    assert await harness.scheduler.tick() == 1
    old = harness.workers[-1]
    await harness.start_worker()
    await harness.run_until_idle()
    expected = await harness.pass_result(request)

    await old.run_until_idle()

    assert (await harness.pass_result(request)).metrics == expected.metrics


async def test_an_optimizer_step_runs_while_its_pass_is_being_settled(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.create()
    await harness.run_until_idle()
    has_stepped = asyncio.Event()
    settled = settling_behind(harness, monkeypatch, has_stepped)
    request = await harness.train(cross_entropy([5]))

    async with asyncio.timeout(DEADLINE_S):
        await harness.run_until_idle()

    assert settled == [OperationKind.FORWARD_BACKWARD, OperationKind.OPTIM_STEP]
    assert (await harness.future(request)).state is FutureState.DONE


async def test_a_model_that_moved_while_its_step_ran_is_dropped_with_the_step(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await run_steps(harness, 1, num_steps=2)
    await harness.create()
    await harness.run_until_idle()
    old: Any = harness.workers[-1]
    first = await harness.train(cross_entropy([7, 13, 1, 9], seed=0))
    assert await harness.scheduler.tick() == 1

    with monkeypatch.context() as patched:
        has_stepped = asyncio.Event()

        async def moved() -> None:
            await has_stepped.wait()
            await harness.start_worker()
            await harness.run_until_idle()

        settling_behind(harness, patched, has_stepped, moved)
        async with asyncio.timeout(DEADLINE_S):
            await old.run_until_idle()

    assert not old._engine.has(ids.model_id(SESSION_ID, 0))
    again = [await harness.pass_result(first), *await run_steps_of(harness, range(1, 2))]
    assert all(same(a, b) for a, b in zip(undisturbed, again, strict=True))


async def run_steps_of(harness: Harness, seeds: range) -> list[PassResult]:
    requests = [await harness.train(cross_entropy([7, 13, 1, 9], seed=seed)) for seed in seeds]
    await harness.run_until_idle()
    return [await harness.pass_result(request) for request in requests]


def settling_behind(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    has_stepped: asyncio.Event,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> list[OperationKind]:
    """Have the first settlement wait for an optimizer step; returns what is settled, in order."""
    loop = asyncio.get_running_loop()
    worker: Any = harness.workers[-1]
    step, settle = worker._engine.optim_step, harness.store.operations.settle
    settled: list[OperationKind] = []

    def stepped(*args: Any) -> Any:
        metrics = step(*args)
        loop.call_soon_threadsafe(has_stepped.set)
        return metrics

    async def settle_later(**what: Any) -> Any:
        is_first = not settled
        settled.append(what["operation"].kind)
        if is_first:
            await (meanwhile or has_stepped.wait)()
        return await settle(**what)

    monkeypatch.setattr(worker._engine, "optim_step", stepped)
    monkeypatch.setattr(harness.store.operations, "settle", settle_later)
    return settled


async def test_one_operation_that_fails_leaves_the_others_as_they_were(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await run_steps(harness, 0, num_steps=1)
    await harness.create(1, tenant="tenant-1")
    await harness.create(2, tenant="tenant-2")
    await harness.run_until_idle()
    fail_for_requests_of(monkeypatch, ids.model_id(SESSION_ID, 2))
    good = await harness.train(cross_entropy([7, 13, 1, 9], seed=0), 1, "tenant-1")
    bad = await harness.train(cross_entropy([3]), 2, "tenant-2")
    await harness.run_until_idle()

    future = await harness.future(bad)
    assert future.state is FutureState.FAILED
    assert future.error is not None
    assert "error" in future.error.message
    assert "burnt" not in future.error.message
    assert same(alone[0], await harness.pass_result(good))


def fail_for_requests_of(monkeypatch: pytest.MonkeyPatch, model_id: str) -> None:
    """Make the forward of every pack that holds an operation of this model raise."""
    from cyclora_workers import engine

    real = engine.PackedPasses

    class Failing(real):
        def __init__(self, base_model: Any, items: Any, **options: Any) -> None:
            super().__init__(base_model, items, **options)
            self._is_bad = any(item.request_id.startswith(model_id) for item in items)

        def __next__(self) -> int:
            num_tokens = super().__next__()
            if self._is_bad:
                raise RuntimeError("the chip is burnt")
            return num_tokens

    monkeypatch.setattr(engine, "PackedPasses", Failing)


async def test_a_checkpoint_loads_into_another_model(harness: Harness) -> None:
    first = await run_steps(harness, 0, num_steps=3)
    assert first
    save = await harness.save("three")
    path = f"tinker://{ids.model_id(SESSION_ID, 0)}/weights/three"
    await harness.run_until_idle()
    assert (await harness.future(save)).state is FutureState.DONE
    await harness.create(1)
    load_body = LoadWeightsBody(path, True, harness.base_model.name, LORA)
    await harness.submit(OperationKind.LOAD_WEIGHTS, load_body, model=1)
    body = cross_entropy([8, 9], seed=7)
    requests = [await harness.train(body, model) for model in (0, 1, 0, 1)]
    await harness.run_until_idle()

    results = [await harness.pass_result(request) for request in requests]
    assert same(results[0], results[1])
    assert same(results[2], results[3])


async def test_a_second_save_of_the_same_name_fails_and_leaves_the_first(
    harness: Harness,
) -> None:
    await harness.create()
    first, second = await harness.save("name"), await harness.save("name")
    await harness.run_until_idle()

    assert (await harness.future(first)).state is FutureState.DONE
    future = await harness.future(second)
    assert future.error is not None
    assert "exists" in future.error.message


def sample_body(weights_path: str | None = None, max_tokens: int = 6) -> SampleBody:
    params = SamplingParams(max_tokens=max_tokens, seed=11, stop_on_eos=False)
    return SampleBody(np.array([5, 6, 7], np.int32), 3, params, weights_path)


async def sampled(harness: Harness, request_id: str) -> list[list[int]]:
    future = await harness.future(request_id)
    assert future.state is FutureState.DONE, future.error
    assert future.result is not None
    result = SampleResult.from_payload(payload.decode(future.result))
    return [sequence.tokens.tolist() for sequence in result.sequences]


async def submit_sample(harness: Harness, body: SampleBody) -> str:
    owner = ids.sampling_session_id(SESSION_ID, 0)
    return await harness.submit(OperationKind.SAMPLE, body, owner_id=owner)


async def test_a_sample_that_was_running_when_the_worker_died_gives_the_same_tokens(
    harness: Harness,
) -> None:
    expected = await submit_sample(harness, sample_body())
    await harness.run_until_idle()
    again = await submit_sample(harness, sample_body())
    assert await harness.scheduler.tick() == 1
    await harness.start_worker()

    await harness.run_until_idle()

    assert await sampled(harness, again) == await sampled(harness, expected)


async def test_an_ephemeral_save_makes_a_sampling_session_that_any_worker_can_serve(
    harness: Harness,
) -> None:
    await run_steps(harness, 0, num_steps=3)
    path = f"tinker://{ids.model_id(SESSION_ID, 0)}/sampler_weights/ephemeral-9"
    session_id = ids.sampling_session_id(SESSION_ID, 5)
    save = SaveWeightsBody(path, sampling_session_id=session_id)
    await harness.submit(OperationKind.SAVE_WEIGHTS_FOR_SAMPLER, save, tenant_id="tenant-0")
    await harness.run_until_idle()
    at_hand = await submit_sample(harness, sample_body(path))
    plain = await submit_sample(harness, sample_body())
    await harness.run_until_idle()
    await harness.start_worker()
    from_storage = await submit_sample(harness, sample_body(path))
    await harness.run_until_idle()

    record = await harness.store.sampling.get(session_id)
    assert record is not None
    assert record.weights_path == path
    assert await sampled(harness, at_hand) == await sampled(harness, from_storage)
    assert await sampled(harness, at_hand) != await sampled(harness, plain)


async def test_samples_beyond_the_kv_memory_wait_and_finish(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    await harness.start_worker(max_kv_tokens=60)

    requests = [await submit_sample(harness, sample_body()) for _ in range(7)]
    await harness.run_until_idle()

    answers = [await sampled(harness, request) for request in requests]
    assert answers == [answers[0]] * 7


async def test_a_sample_of_a_checkpoint_that_is_gone_fails_alone(harness: Harness) -> None:
    path = f"tinker://{ids.model_id(SESSION_ID, 0)}/sampler_weights/gone"
    bad = await submit_sample(harness, sample_body(path))
    good = await submit_sample(harness, sample_body())
    await harness.run_until_idle()

    future = await harness.future(bad)
    assert future.error is not None
    assert path in future.error.message
    assert await sampled(harness, good)


async def test_forward_leaves_no_gradient(harness: Harness) -> None:
    body = cross_entropy([6, 3], seed=4)
    await harness.create(0)
    await harness.create(1)
    await harness.submit(OperationKind.FORWARD, body, model=1)
    requests = [await harness.train(PassBody("cross_entropy", {}, body.data), m) for m in (0, 1)]
    again = [await harness.train(body, m) for m in (0, 1)]
    await harness.run_until_idle()

    for pair in (requests, again):
        first, second = [await harness.pass_result(request) for request in pair]
        assert same(first, second)


async def test_a_step_with_a_gradient_that_is_not_finite_fails_and_replays_as_it_went(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.create(0)
    await harness.create(1)
    body = cross_entropy([6, 3], seed=4)
    huge = policy_body("importance_sampling", [4], seed=1)
    for datum in huge.data:
        inputs: Any = datum.loss_fn_inputs
        inputs["logprobs"] = np.full(4, -1e30, np.float32)
    bad_step = await harness.submit(OperationKind.FORWARD_BACKWARD, huge, model=1)
    assert bad_step
    failing = await harness.submit(
        OperationKind.OPTIM_STEP, OptimStepBody(learning_rate=1e-2), model=1
    )
    first = [await harness.train(body, model) for model in (0, 1)]
    await harness.run_until_idle()
    await harness.start_worker()
    second = [await harness.train(body, model) for model in (0, 1)]
    await harness.run_until_idle()

    future = await harness.future(failing)
    assert future.error is not None
    assert "gradient" in future.error.message
    for pair in (first, second):
        results = [await harness.pass_result(request) for request in pair]
        assert same(*results)


async def test_a_pass_that_does_not_fit_into_memory_packed_runs_block_by_block(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await run_steps(harness, 0, num_steps=2)
    from cyclora_workers import engine

    real = engine.PackedPasses

    class Cramped(real):
        def __init__(self, base_model: Any, items: Any, **options: Any) -> None:
            super().__init__(base_model, items, **options)
            self._is_packed = options["max_tokens_per_microbatch"] > 1

        def __next__(self) -> int:
            num_tokens = super().__next__()
            if self._is_packed:
                raise MemoryError
            return num_tokens

    monkeypatch.setattr(engine, "PackedPasses", Cramped)

    again = await run_steps(harness, 1, num_steps=2)

    assert all(same(a, b) for a, b in zip(alone, again, strict=True))


async def test_operations_of_a_model_whose_creation_failed_say_so(harness: Harness) -> None:
    flags = {"train_attn": False, "train_mlp": False, "train_unembed": False}
    await harness.create(0, LoraConfig(4, **flags))
    request = await harness.train(cross_entropy([4]))
    await harness.run_until_idle()

    future = await harness.future(request)
    assert future.error is not None
    assert "creating it failed" in future.error.message


async def test_samples_wait_with_the_scheduler_so_that_a_small_tenant_gets_its_turn(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    worker = await harness.start_worker(max_kv_tokens=60)
    large = [await submit_sample(harness, sample_body()) for _ in range(30)]
    await harness.scheduler.run_until_idle()
    assert (await store.workers.list())[0].cycle_id is not None
    small = await harness.submit(
        OperationKind.SAMPLE,
        sample_body(),
        tenant_id="tenant-small",
        owner_id=ids.sampling_session_id(SESSION_ID, 1),
    )

    while (await harness.future(small)).state is FutureState.PENDING:
        await worker.run_until_idle()
        await harness.scheduler.tick()

    states = [(await harness.future(request)).state for request in large]
    assert states.count(FutureState.DONE) <= 10


async def test_a_part_that_is_dispatched_twice_counts_once(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model, min_cycle_tokens=2048)
    worker = await harness.start_worker()
    body = cross_entropy([100] * 60, seed=3)
    results: list[PassResult] = []
    real = store.cycles.dispatch

    async def answered_late(*args: Any) -> Any:
        """The answer is lost; the worker is done when the connection is back."""
        await real(*args, nonce="same")
        await worker.run_until_idle()
        store.cycles.dispatch = real
        return await real(*args, nonce="same")

    for model in (0, 1):
        await harness.create(model)
        await harness.run_until_idle()
        request = await harness.train(body, model)
        following = await harness.train(body, model)
        if model == 1:
            store.cycles.dispatch = answered_late  # type: ignore[method-assign]
        await harness.run_until_idle()
        results += [await harness.pass_result(request), await harness.pass_result(following)]

    assert same(results[0], results[2])
    assert same(results[1], results[3])
