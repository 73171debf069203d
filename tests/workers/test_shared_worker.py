"""Training and sampling share a worker by a setting, and neither waits for the other's end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind
from cyclora_core.records import FutureState
from cyclora_core.samples import SampleBody, SamplingParams
from cyclora_core.store import Store
from cyclora_workers.base_model import BaseModel
from cyclora_workers.engine import Engine
from workers.builders import cross_entropy
from workers.harness import SESSION_ID, Harness

SAMPLER = ids.sampling_session_id(SESSION_ID, 0)
NUM_MODELS = 6
DATA = [120, 120]
"""Tokens of a model's data, with which a microbatch of the harness is full."""


class Shared:
    """One worker, whose next cycle runs without the decoding behind it."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self._worker = harness.workers[-1]

    @property
    def engine(self) -> Engine:
        return self._worker._engine  # pyright: ignore[reportPrivateUsage]

    async def train(self) -> list[str]:
        body = cross_entropy(DATA, seed=1)
        models = range(NUM_MODELS)
        return [await self.harness.train(body, model, tenant="tenant-a") for model in models]

    async def sample(self, max_tokens: int) -> str:
        params = SamplingParams(max_tokens=max_tokens, seed=1, stop_on_eos=False)
        body = SampleBody(np.array([5, 6, 7], np.int32), 1, params)
        return await self.harness.submit(
            OperationKind.SAMPLE, body, owner_id=SAMPLER, tenant_id="tenant-b"
        )

    async def run_cycle(self) -> tuple[int, int]:
        """The microbatches and the decode steps of the next cycle."""
        engine, worker = self.engine, self._worker
        before = engine.num_microbatches, engine.sampler.num_steps
        await self.harness.scheduler.tick()
        cycle = await self.harness.store.workers.claim(
            worker.worker_id,
            worker._last_cycle_id,  # pyright: ignore[reportPrivateUsage]
            0,
        )
        assert cycle is not None
        worker._last_cycle_id = cycle.cycle_id  # pyright: ignore[reportPrivateUsage]
        await worker._executor.execute(cycle)  # pyright: ignore[reportPrivateUsage]
        stats = await worker._stats()  # pyright: ignore[reportPrivateUsage]
        await self.harness.store.workers.release(worker.worker_id, cycle.cycle_id, stats)
        return engine.num_microbatches - before[0], engine.sampler.num_steps - before[1]

    async def are_done(self, *request_ids: str) -> bool:
        states = {(await self.harness.future(each)).state for each in request_ids}
        return states == {FutureState.DONE}


async def shared(
    store: Store, clock: ManualClock, folder: Path, base_model: BaseModel, decode_steps: int
) -> Shared:
    harness = Harness(store, clock, folder, base_model)
    await harness.start_worker(decode_steps_per_microbatch=decode_steps)
    for model in range(NUM_MODELS):
        await harness.create(model)
    await harness.run_until_idle()
    return Shared(harness)


@pytest.mark.parametrize("decode_steps", [0, 1, 4])
async def test_samples_get_their_steps_behind_every_microbatch(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel, decode_steps: int
) -> None:
    worker = await shared(store, clock, tmp_path, base_model, decode_steps)
    training, sampling = await worker.train(), await worker.sample(max_tokens=60)

    num_microbatches, num_steps = await worker.run_cycle()

    assert num_microbatches == NUM_MODELS
    assert num_steps == decode_steps * NUM_MODELS
    assert await worker.are_done(*training)
    assert not await worker.are_done(sampling)
    await worker.harness.run_until_idle()
    assert await worker.are_done(sampling)


async def test_neither_has_steps_taken_from_it_that_the_other_does_not_need(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    """A sample that ends among the microbatches is answered, and costs the rest of them nothing."""
    worker = await shared(store, clock, tmp_path, base_model, 1)
    await worker.train()
    assert await worker.run_cycle() == (NUM_MODELS, 0)

    await worker.train()
    sampling = await worker.sample(max_tokens=3)
    num_microbatches, num_steps = await worker.run_cycle()

    assert num_microbatches == NUM_MODELS
    assert num_steps < NUM_MODELS
    assert worker.engine.sampler.is_idle
    assert await worker.are_done(sampling)


async def test_training_without_a_pause_keeps_no_sample_from_its_end(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    worker = await shared(store, clock, tmp_path, base_model, 1)
    sampling = await worker.sample(max_tokens=4 * NUM_MODELS)
    num_steps = 0

    for _ in range(6):
        training = await worker.train()
        num_steps += (await worker.run_cycle())[1]
        assert await worker.are_done(*training)

    assert num_steps == pytest.approx(4 * NUM_MODELS, abs=1)
    assert await worker.are_done(sampling)
