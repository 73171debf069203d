"""What a worker says of itself while it really trains and samples a tiny model."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
import torch

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import LoadWeightsBody, OperationKind
from cyclora_core.samples import SampleBody, SamplingParams
from cyclora_core.store import Store
from cyclora_core.store.metering import Meter
from cyclora_core.store.operations import Outcome, SettleOutcome
from cyclora_workers import snapshot
from cyclora_workers.metrics import WorkerMetrics, latency_s
from cyclora_workers.passes import PackedPasses
from cyclora_workers.phases import Phase
from workers.builders import cross_entropy
from workers.harness import LORA, SESSION_ID, Harness, run_steps

MISSING = f"tinker://{ids.model_id(SESSION_ID, 0)}/weights/missing"
SAMPLER = ids.sampling_session_id(SESSION_ID, 0)


class Watched:
    """Metrics, read as Prometheus reads them."""

    def __init__(self, max_tenants: int = 100) -> None:
        self.metrics = WorkerMetrics(max_tenants)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.instruments.registry.get_sample_value(f"cyclora_{name}", labels)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def sample(num_samples: int = 1, prompt: int = 40, max_tokens: int = 3) -> SampleBody:
    params = SamplingParams(seed=1, max_tokens=max_tokens)
    tokens = np.arange(1, prompt + 1, dtype=np.int32)
    return SampleBody(tokens, num_samples, params)


async def test_tokens_are_counted_as_they_are_metered(
    harness: Harness, store: Store, watched: Watched
) -> None:
    await harness.start_worker(metrics=watched.metrics)
    await run_steps(harness, 0, 2)
    for _ in range(2):
        await harness.submit(
            OperationKind.SAMPLE, sample(2), owner_id=SAMPLER, tenant_id="tenant-0"
        )
        await harness.run_until_idle()

    hour = harness.clock.now_ms() // 3_600_000
    metered: dict[str, int] = {}
    for each in await store.metering.used("tenant-0", hour, hour + 1):
        metered[each.meter] = metered.get(each.meter, 0) + each.amount
    counted = {
        str(meter): watched.value("tokens_total", tenant_id="tenant-0", meter=str(meter))
        for meter in (Meter.TRAINING, Meter.PREFILL, Meter.CACHED_PREFILL, Meter.SAMPLED)
    }
    assert counted == metered
    assert counted["cached_prefill"]
    assert watched.value("pass_tokens_total") == counted["training"]


async def test_operations_are_counted_once_by_their_end(harness: Harness, watched: Watched) -> None:
    await harness.start_worker(metrics=watched.metrics)
    await run_steps(harness, 0, 2)
    await harness.submit(
        OperationKind.LOAD_WEIGHTS,
        LoadWeightsBody(MISSING, False, "tests/tiny", LORA),
        tenant_id="tenant-0",
    )
    await harness.run_until_idle()

    done = {
        kind: watched.value("settled_operations_total", kind=kind, state="done")
        for kind in ("create_model", "forward_backward", "optim_step")
    }
    assert done == {"create_model": 1, "forward_backward": 2, "optim_step": 2}
    assert watched.value("settled_operations_total", kind="load_weights", state="failed") == 1
    assert watched.value("failed_operations_total", kind="load_weights", category="user") == 1


async def test_the_time_from_submission_to_end_is_measured(
    harness: Harness, clock: ManualClock, watched: Watched
) -> None:
    await harness.start_worker(metrics=watched.metrics)
    await harness.create()
    await harness.submit(OperationKind.SAMPLE, sample(), owner_id=SAMPLER)
    clock.advance(3.0)
    await harness.run_until_idle()

    for kind in ("create_model", "sample"):
        assert watched.value("operation_seconds_sum", kind=kind) == 3.0


def test_a_clock_that_is_behind_and_an_unknown_time_are_no_negative_latencies() -> None:
    assert (latency_s(2000, 1000), latency_s(0, 1000)) == (0.0, None)


def test_an_answer_that_was_lost_and_asked_for_again_counts_once(watched: Watched) -> None:
    for reply in (SettleOutcome.SETTLED, SettleOutcome.ALREADY):
        watched.metrics.settled(
            OperationKind.FORWARD,
            "tenant",
            Outcome(b"", num_tokens=5),
            reply,
            latency_s=1.0,
            metered={Meter.TRAINING: 5},
        )

    assert watched.value("settled_operations_total", kind="forward", state="done") == 1
    assert watched.value("tokens_total", tenant_id="tenant", meter="training") == 5


async def test_sums_over_tenants_are_complete_however_few_have_a_label(harness: Harness) -> None:
    watched = Watched(max_tenants=1)
    await harness.start_worker(metrics=watched.metrics)
    for model in range(3):
        await run_steps(harness, model, 1)

    per_label = {
        label: watched.value("tokens_total", tenant_id=label, meter="training")
        for label in ("tenant-0", "tenant-1", "other")
    }
    num_tokens = per_label["tenant-0"]
    assert num_tokens
    assert per_label == {"tenant-0": num_tokens, "tenant-1": None, "other": 2 * num_tokens}


async def test_the_phases_of_a_cycle_add_up_to_the_cycle(
    harness: Harness, watched: Watched
) -> None:
    await harness.start_worker(metrics=watched.metrics)
    await run_steps(harness, 0, 3)
    await harness.save("state")
    await harness.run_until_idle()

    sums = [watched.value("cycle_phase_seconds_sum", phase=phase) or 0.0 for phase in Phase]
    total_s = watched.value("cycle_seconds_sum")
    assert total_s
    assert 0.9 * total_s <= sum(sums) <= total_s
    for phase in (Phase.LOAD, Phase.PASSES, Phase.STEPS, Phase.SETTLE, Phase.SAVES):
        assert watched.value("cycle_phase_seconds_sum", phase=phase)


async def test_batches_show_how_full_they_are(harness: Harness, watched: Watched) -> None:
    await harness.start_worker(metrics=watched.metrics)
    await run_steps(harness, 0, 1)
    await harness.submit(
        OperationKind.SAMPLE, sample(num_samples=4, prompt=17, max_tokens=3), owner_id=SAMPLER
    )
    await harness.run_until_idle()

    num_tokens = watched.value("microbatch_tokens_total")
    assert num_tokens == watched.value("tokens_total", tenant_id="tenant-0", meter="training")
    assert watched.value("microbatches_total") == 1
    assert watched.value("microbatch_max_tokens") == 256
    # A step for the prompt, which draws the first tokens, and two in which all four rows decode.
    assert watched.value("decode_steps_total") == 3
    assert watched.value("decoded_rows_total") == 8
    assert watched.value("prefilled_tokens_total") == 17
    assert watched.value("running_samples") == 0
    assert watched.value("sample_rows", state="running") == 0


async def test_kv_blocks_are_held_remembered_or_free(harness: Harness, watched: Watched) -> None:
    worker = await harness.start_worker(metrics=watched.metrics)
    sampler = worker._engine.sampler  # pyright: ignore[reportPrivateUsage]

    def blocks() -> list[float | None]:
        states = ("held", "remembered", "free")
        return [watched.value("kv_blocks", state=state) for state in states]

    num_blocks = sampler.max_kv_tokens // 16
    assert blocks() == [0, 0, num_blocks]
    sampler.admit("r", sample(prompt=40), None)
    sampler.step()
    assert blocks() == [3, 0, num_blocks - 3]
    while not sampler.is_idle:
        sampler.step()
    assert blocks() == [0, 2, num_blocks - 2]


async def test_adapters_are_counted_where_they_are(harness: Harness, watched: Watched) -> None:
    await harness.start_worker(metrics=watched.metrics, max_adapter_bytes=0)
    await run_steps(harness, 0, 1)
    assert watched.value("evicted_adapters_total") == 1
    assert watched.value("adapters", place="resident") == 0
    assert watched.value("snapshot_seconds_count") == 1

    await harness.train(cross_entropy([5, 6]), 0, "tenant-0")
    await harness.run_until_idle()
    assert watched.value("restore_seconds_count") == 1
    assert watched.value("replayed_operations_total") == 0

    roomy = Watched()
    await harness.start_worker(metrics=roomy.metrics)
    await run_steps(harness, 1, 1)
    assert roomy.value("adapters", place="resident") == 1
    assert roomy.value("adapter_bytes", place="resident")


async def test_what_is_run_again_is_counted(harness: Harness, watched: Watched) -> None:
    await harness.start_worker()
    await run_steps(harness, 0, 2)
    await harness.start_worker(metrics=watched.metrics)
    await harness.train(cross_entropy([5, 6]), 0, "tenant-0")
    await harness.run_until_idle()

    assert watched.value("replayed_operations_total") == 5


async def test_a_snapshot_that_storage_does_not_take_is_counted(
    harness: Harness, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(snapshot, "write", full)
    await harness.start_worker(metrics=watched.metrics, max_adapter_bytes=0)
    await run_steps(harness, 0, 1)

    assert watched.value("snapshots_failed_total")
    assert watched.value("snapshot_seconds_count") == 0


@pytest.mark.parametrize(("error", "reason"), [
    (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    (MemoryError(), "out_of_memory"),
    (ValueError("other"), "error"),
])  # fmt: skip
async def test_passes_that_had_to_run_alone_are_counted_by_why(
    harness: Harness,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    await harness.start_worker(metrics=watched.metrics)
    real = PackedPasses.__iter__
    failures = [error]

    def fail_once(passes: PackedPasses) -> Any:
        if failures:
            raise failures.pop()
        return real(passes)

    monkeypatch.setattr(PackedPasses, "__iter__", fail_once)
    await run_steps(harness, 0, 1)

    expected = {"out_of_memory": 0, "error": 0, reason: 1}
    found = {r: watched.value("packed_failures_total", reason=r) for r in expected}
    assert found == expected


async def test_a_worker_is_ready_only_while_it_renews_its_lease(
    harness: Harness, clock: ManualClock, watched: Watched
) -> None:
    worker = await harness.start_worker(metrics=watched.metrics)
    assert worker.has_lease
    clock.advance(31.0)
    assert not worker.has_lease
    assert watched.value("lease_age_seconds") == 31.0

    await worker.register()
    assert worker.has_lease


async def test_an_engine_that_hangs_is_told(
    harness: Harness, clock: ManualClock, watched: Watched
) -> None:
    """Its worker's lease is renewed all the while, by another thread."""
    worker = await harness.start_worker(metrics=watched.metrics)
    release, has_begun = threading.Event(), threading.Event()

    def hang() -> None:
        has_begun.set()
        release.wait()

    engine_call = worker._in_thread(hang)  # pyright: ignore[reportPrivateUsage]
    hanging = asyncio.create_task(engine_call)
    await asyncio.to_thread(has_begun.wait)
    clock.advance(60.0)
    assert worker.is_engine_moving
    clock.advance(1.0)
    assert not worker.is_engine_moving

    release.set()
    await hanging
    assert worker.is_engine_moving


async def test_before_a_worker_has_begun_its_metrics_can_be_read(watched: Watched) -> None:
    families = {family.name for family in watched.metrics.instruments.registry.collect()}

    assert {"cyclora_kv_blocks", "cyclora_device_memory_bytes", "cyclora_decode_steps"} <= families
