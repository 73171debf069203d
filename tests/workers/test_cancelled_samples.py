"""A worker lets go of samples that were cancelled, whenever the news arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind
from cyclora_core.records import FutureState
from cyclora_core.samples import SampleBody, SamplingParams
from cyclora_core.store import Store
from cyclora_core.store.cancellations import CancelOutcome
from cyclora_workers.base_model import BaseModel
from cyclora_workers.sampling.sampler import Sampler
from workers.harness import SESSION_ID, Harness

SAMPLER = ids.sampling_session_id(SESSION_ID, 0)
KV_TOKENS = 64
BLOCK = 16


@pytest.fixture
async def harness(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> Harness:
    made = Harness(store, clock, tmp_path, base_model)
    await made.start_worker(max_kv_tokens=KV_TOKENS)
    return made


async def ask(harness: Harness, max_tokens: int = 20) -> str:
    params = SamplingParams(max_tokens=max_tokens, seed=1, stop_on_eos=False)
    body = SampleBody(np.array([5, 6, 7], np.int32), 1, params)
    return await harness.submit(OperationKind.SAMPLE, body, owner_id=SAMPLER)


async def cancel(harness: Harness, request_id: str) -> CancelOutcome:
    seq_id = int(request_id.rpartition(":")[2])
    base_model = harness.base_model.name
    return await harness.store.cancellations.cancel("tenant-a", base_model, SAMPLER, seq_id)


async def admitted(harness: Harness) -> Any:
    """The newest worker, with what waits in its sampler and nothing decoded yet."""
    worker: Any = harness.workers[-1]
    await harness.scheduler.tick()
    cycle = await harness.store.workers.claim(worker._worker_id, 0, 0)
    assert cycle is not None
    worker._last_cycle_id = cycle.cycle_id
    await worker._executor.execute(cycle)
    stats = await worker._stats()
    await harness.store.workers.release(worker._worker_id, cycle.cycle_id, stats)
    return worker


async def states(harness: Harness, *request_ids: str) -> list[FutureState]:
    return [(await harness.future(each)).state for each in request_ids]


async def test_a_running_sample_frees_its_memory_and_its_neighbour_goes_on(
    harness: Harness,
) -> None:
    first, second = [await ask(harness) for _ in range(2)]
    worker = await admitted(harness)
    await worker._decode()
    assert worker._engine.sampler.free_kv_tokens == KV_TOKENS - 2 * BLOCK

    await cancel(harness, first)
    await worker._heed_cancelled()

    assert worker._engine.sampler.free_kv_tokens == KV_TOKENS - BLOCK
    (status,) = await harness.store.cycles.workers()
    assert status.stats.free_sample_tokens == KV_TOKENS - 2 * BLOCK
    await harness.run_until_idle()
    assert await states(harness, first, second) == [FutureState.FAILED, FutureState.DONE]


async def test_a_sample_cancelled_between_dispatch_and_admission_never_runs(
    harness: Harness,
) -> None:
    request_id = await ask(harness)
    await harness.scheduler.tick()

    await cancel(harness, request_id)
    await harness.run_until_idle()

    worker: Any = harness.workers[-1]
    assert worker._engine.sampler.is_idle
    assert worker._samples.num_running == 0
    assert await states(harness, request_id) == [FutureState.FAILED]


async def test_news_that_come_while_a_sample_is_admitted_are_not_missed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body was read already when the client gave up."""
    request_id = await ask(harness)
    worker: Any = harness.workers[-1]
    admit = worker._samples._admit

    async def cancelled_meanwhile(*args: Any) -> None:
        await cancel(harness, request_id)
        await worker._heed_cancelled()
        await admit(*args)

    monkeypatch.setattr(worker._samples, "_admit", cancelled_meanwhile)

    await admitted(harness)

    assert worker._engine.sampler.is_idle


async def test_a_sample_that_ended_before_the_news_came_is_settled_once(harness: Harness) -> None:
    request_id = await ask(harness, max_tokens=1)
    worker = await admitted(harness)
    finished = worker._engine.decode(1)

    await cancel(harness, request_id)
    await worker._heed_cancelled()
    await worker._samples.settle(finished)

    assert await states(harness, request_id) == [FutureState.FAILED]


async def test_a_worker_that_died_before_it_heard_does_not_pass_the_sample_on(
    harness: Harness,
) -> None:
    cancelled, kept = [await ask(harness) for _ in range(2)]
    await admitted(harness)
    await cancel(harness, cancelled)

    await harness.start_worker(max_kv_tokens=KV_TOKENS)
    await harness.run_until_idle()

    assert await states(harness, cancelled, kept) == [FutureState.FAILED, FutureState.DONE]
    assert await cancel(harness, kept) is CancelOutcome.FINAL


async def test_one_that_waits_makes_room_for_those_behind_it(harness: Harness) -> None:
    running, large, small = [await ask(harness, n) for n in (40, 50, 5)]
    await admitted(harness)

    await cancel(harness, large)
    await harness.run_until_idle()

    assert await states(harness, running, large, small) == [
        FutureState.DONE,
        FutureState.FAILED,
        FutureState.DONE,
    ]


async def test_only_the_engines_thread_looks_at_what_it_changes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim reports beside a decode step: whoever counted there would find it changed."""
    threads: dict[str, set[str]] = {"room_tokens": set(), "take_partials": set()}

    def noted(name: str, function: Callable[[Sampler], Any]) -> Callable[[Sampler], Any]:
        def run(sampler: Sampler) -> Any:
            threads[name].add(threading.current_thread().name)
            return function(sampler)

        return run

    room_tokens: Any = Sampler.room_tokens
    monkeypatch.setattr(Sampler, "room_tokens", property(noted("room_tokens", room_tokens.fget)))
    partials = noted("take_partials", Sampler.take_partials)
    monkeypatch.setattr(Sampler, "take_partials", partials)
    first = await ask(harness)
    await ask(harness)
    worker = await admitted(harness)
    await worker._decode()
    await cancel(harness, first)

    await worker._heed_cancelled()
    await harness.run_until_idle()

    assert threads == {"room_tokens": {"engine_0"}, "take_partials": {"engine_0"}}
