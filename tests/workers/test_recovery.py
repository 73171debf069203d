"""States restored, covered by snapshots and evicted: always the same bits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from torch import Tensor

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory, ServerError
from cyclora_core.ids import CheckpointPath
from cyclora_core.operations import (
    LoadWeightsBody,
    LoraConfig,
    OperationKind,
    OptimStepBody,
    PassResult,
)
from cyclora_core.records import FutureState
from cyclora_core.store import Store
from cyclora_workers import durable, snapshot
from cyclora_workers.base_model import BaseModel
from cyclora_workers.engine import Engine
from cyclora_workers.metrics import WorkerMetrics
from cyclora_workers.replay import Replay
from cyclora_workers.snapshot_writer import SnapshotWriter
from workers.builders import cross_entropy, policy_body, top_k
from workers.harness import LORA, SESSION_ID, Harness, run_steps, same

MODEL_0 = ids.model_id(SESSION_ID, 0)
MODEL_1 = ids.model_id(SESSION_ID, 1)


async def go_on(harness: Harness, model: int, steps: range) -> list[PassResult]:
    """More of the steps that ``run_steps`` begins."""
    requests = [
        await harness.train(cross_entropy([7, 13, 1, 9], seed=step), model, f"tenant-{model}")
        for step in steps
    ]
    await harness.run_until_idle()
    return [await harness.pass_result(request) for request in requests]


async def test_passes_of_every_loss_are_replayed_to_the_same_bits(harness: Harness) -> None:
    lengths = [7, 13, 1, 9]
    bodies = [policy_body("gspo", lengths), top_k(lengths, [3, 1]), policy_body("ppo", lengths)]

    results: list[list[PassResult]] = []
    for model in range(2):
        await harness.create(model)
        requests: list[str] = []
        for index, body in enumerate([*bodies, *bodies]):
            if model == 1 and index == len(bodies):
                await harness.run_until_idle()
                await harness.start_worker()
            requests.append(await harness.train(body, model))
        await harness.run_until_idle()
        results.append([await harness.pass_result(request) for request in requests])

    assert all(same(a, b) for a, b in zip(*results, strict=True))


async def test_a_new_worker_goes_on_with_the_same_bits(harness: Harness) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=6)
    first = await run_steps(harness, 1, num_steps=3)
    await harness.start_worker()

    requests = [
        await harness.train(cross_entropy([7, 13, 1, 9], seed=step), 1, "tenant-1")
        for step in range(3, 6)
    ]
    await harness.run_until_idle()

    rest = [await harness.pass_result(request) for request in requests]
    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


async def test_gradients_that_no_step_has_used_survive_a_new_worker(harness: Harness) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=2)
    await harness.create(1)
    body = cross_entropy([7, 13, 1, 9], seed=0)
    await harness.submit(OperationKind.FORWARD_BACKWARD, body, model=1)
    await harness.run_until_idle()
    await harness.start_worker()
    step = OptimStepBody(learning_rate=1e-2)
    await harness.submit(OperationKind.OPTIM_STEP, step, model=1)
    second = await harness.train(cross_entropy([7, 13, 1, 9], seed=1), 1)
    await harness.run_until_idle()

    assert same(undisturbed[1], await harness.pass_result(second))


async def test_a_long_log_is_cut_by_a_snapshot_that_restores_the_same_bits(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    await harness.start_worker()
    undisturbed = await run_steps(harness, 0, num_steps=4)
    await harness.start_worker(max_replay_s=1e-9)
    first = await run_steps(harness, 1, num_steps=2)
    model_id = ids.model_id(SESSION_ID, 1)
    record = await store.models.get(model_id)
    assert record is not None
    assert record.snapshot_seq_id == record.applied_seq_id == 4
    assert harness.storage.snapshot_dir(model_id, 4, record.epoch).is_dir()
    await harness.start_worker()

    requests = [
        await harness.train(cross_entropy([7, 13, 1, 9], seed=step), 1, "tenant-1")
        for step in (2, 3)
    ]
    await harness.run_until_idle()

    rest = [await harness.pass_result(request) for request in requests]
    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


async def test_a_deleted_checkpoint_is_not_needed_to_recover_what_loaded_it(
    harness: Harness,
) -> None:
    await harness.create()
    await harness.save("gone")
    path = f"tinker://{ids.model_id(SESSION_ID, 0)}/weights/gone"
    load_body = LoadWeightsBody(path, False, harness.base_model.name, LORA)
    await harness.submit(OperationKind.LOAD_WEIGHTS, load_body)
    await harness.run_until_idle()
    harness.storage.delete_checkpoint(CheckpointPath.parse(path))
    await harness.start_worker()

    request = await harness.train(cross_entropy([4]))
    await harness.run_until_idle()

    assert (await harness.pass_result(request)).logprobs


async def test_a_worker_stops_in_order_with_a_model_whose_creation_failed(
    harness: Harness,
) -> None:
    flags = {"train_attn": False, "train_mlp": False, "train_unembed": False}
    await harness.create(0, LoraConfig(4, **flags))
    await harness.create(1)
    await harness.run_until_idle()
    stopping = asyncio.Event()
    stopping.set()

    await asyncio.wait_for(harness.workers[-1].run(stopping), 20)

    record = await harness.store.models.get(ids.model_id(SESSION_ID, 1))
    assert record is not None
    assert record.snapshot_seq_id == record.applied_seq_id == 0
    assert [status.is_alive for status in await harness.store.workers.list()] == [False]


class SlowDisk:
    """Holds every snapshot back until it is told to let them through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.let_through = threading.Event()
        self._write = snapshot.write
        monkeypatch.setattr(snapshot, "write", self._held)

    def _held(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        self.begun.set()
        assert self.let_through.wait(60)
        self._write(tensors, folder)


async def run_cycles(harness: Harness, num_cycles: int) -> None:
    """Execute cycles without waiting for the snapshots they begin."""
    worker: Any = harness.workers[-1]
    for _ in range(num_cycles):
        assert await harness.scheduler.run_until_idle() == 1
        cycle = await harness.store.workers.claim(worker._worker_id, worker._last_cycle_id, 0)
        assert cycle is not None
        worker._last_cycle_id = cycle.cycle_id
        await worker._execute(cycle)


async def test_cycles_go_on_while_a_snapshot_waits_for_the_disk(
    store: Store,
    clock: ManualClock,
    tmp_path: Path,
    base_model: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    await harness.start_worker()
    undisturbed = await run_steps(harness, 0, num_steps=5)
    await harness.start_worker(max_replay_s=1e-9)
    disk = SlowDisk(monkeypatch)
    await harness.create(1, tenant="tenant-1")
    requests = [
        await harness.train(cross_entropy([7, 13, 1, 9], seed=step), 1, "tenant-1")
        for step in range(3)
    ]

    await run_cycles(harness, 3)
    assert disk.begun.is_set()
    first = [await harness.pass_result(request) for request in requests]
    before = await store.models.get(MODEL_1)
    disk.let_through.set()
    await harness.run_until_idle()

    after = await store.models.get(MODEL_1)
    assert before is not None
    assert after is not None
    assert before.snapshot_seq_id < after.snapshot_seq_id < after.applied_seq_id == 6
    await harness.start_worker()
    rest = await go_on(harness, 1, range(3, 5))
    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


async def load_another(harness: Harness) -> str:
    """Save model 0 as "kept" and load that into it again; returns the load's request_id."""
    await harness.save("kept")
    path = f"tinker://{MODEL_0}/weights/kept"
    body = LoadWeightsBody(path, True, harness.base_model.name, LORA)
    return await harness.submit(OperationKind.LOAD_WEIGHTS, body, tenant_id="tenant-0")


async def test_a_snapshot_that_ends_after_a_newer_one_changes_nothing(
    store: Store,
    clock: ManualClock,
    tmp_path: Path,
    base_model: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    worker: Any = await harness.start_worker(max_replay_s=1e-9)
    await run_steps(harness, 0, num_steps=2)
    record = await store.models.get(MODEL_0)
    assert record is not None
    writer = SnapshotWriter(store, harness.storage, worker._handover, "worker-0", WorkerMetrics())

    assert await writer.record(MODEL_0, record.epoch, 1)

    assert await store.models.get(MODEL_0) == record
    assert await go_on(harness, 0, range(2, 3))
    assert worker is harness.workers[-1]


async def test_a_worker_killed_right_after_a_load_settled_needs_no_checkpoint(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await run_steps(harness, 1, num_steps=3)
    await run_steps(harness, 0, num_steps=2)

    async def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    request = await load_another(harness)
    with monkeypatch.context() as patched:
        patched.setattr(SnapshotWriter, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            await harness.run_until_idle()
    assert (await harness.future(request)).state is FutureState.DONE
    harness.storage.delete_checkpoint(CheckpointPath.parse(f"tinker://{MODEL_0}/weights/kept"))
    await harness.start_worker()

    (third,) = await go_on(harness, 0, range(2, 3))

    assert same(undisturbed[2], third)


async def test_a_load_whose_snapshot_finds_no_room_fails_and_leaves_the_model_as_it_was(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await run_steps(harness, 1, num_steps=3)
    await run_steps(harness, 0, num_steps=1)
    await harness.save("kept")
    await go_on(harness, 0, range(1, 2))

    def no_room(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_file", no_room)
        path = f"tinker://{MODEL_0}/weights/kept"
        body = LoadWeightsBody(path, True, harness.base_model.name, LORA)
        request = await harness.submit(OperationKind.LOAD_WEIGHTS, body, tenant_id="tenant-0")
        await harness.run_until_idle()
    (third,) = await go_on(harness, 0, range(2, 3))

    future = await harness.future(request)
    assert future.error is not None
    assert future.error.category is ErrorCategory.SERVER
    assert "no room" in future.error.message
    assert same(undisturbed[2], third)


async def test_a_snapshot_that_finds_no_room_is_tried_again_and_nothing_is_lost(
    store: Store,
    clock: ManualClock,
    tmp_path: Path,
    base_model: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    await harness.start_worker(max_replay_s=1e-9)
    undisturbed = await run_steps(harness, 0, num_steps=4)

    def no_room(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_file", no_room)
        first = await run_steps(harness, 1, num_steps=2)
        record = await store.models.get(MODEL_1)
        assert record is not None
        assert record.snapshot_seq_id == -1
        assert not list((tmp_path / "snapshots" / MODEL_1).iterdir())
    first += await go_on(harness, 1, range(2, 3))
    record = await store.models.get(MODEL_1)
    assert record is not None
    assert record.snapshot_seq_id == record.applied_seq_id == 6
    await harness.start_worker()
    rest = await go_on(harness, 1, range(3, 4))

    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


async def test_a_worker_that_cannot_replay_a_settled_pass_stops_rather_than_go_on_without_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_steps(harness, 0, num_steps=2)
    undisturbed = await run_steps(harness, 1, num_steps=3)
    await harness.start_worker()
    request = await harness.train(cross_entropy([7, 13, 1, 9], seed=2), 0, "tenant-0")

    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_packed", out_of_memory)
        with pytest.raises(ServerError, match="replaying"):
            await harness.run_until_idle()
    assert (await harness.future(request)).state is FutureState.PENDING
    await harness.start_worker()
    await harness.run_until_idle()

    assert same(undisturbed[2], await harness.pass_result(request))


async def test_a_fenced_worker_records_no_snapshot_and_drops_the_model(harness: Harness) -> None:
    await run_steps(harness, 0, num_steps=1)
    old: Any = harness.workers[-1]
    await harness.start_worker()
    await go_on(harness, 0, range(1, 2))
    record = await harness.store.models.get(MODEL_0)

    await old._keeper.snapshot_all()
    await old._keeper.cycle_ended()

    assert await harness.store.models.get(MODEL_0) == record
    assert not old._engine.has(MODEL_0)


async def test_more_models_than_fit_take_turns_with_the_same_bits(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    await harness.start_worker()
    undisturbed = await run_steps(harness, 0, num_steps=3)
    worker: Any = await harness.start_worker(max_adapter_bytes=1)
    for model in (1, 2, 3):
        await run_steps(harness, model, num_steps=0)
    results: dict[int, list[PassResult]] = {1: [], 2: [], 3: []}

    for step in range(3):
        for model, found in results.items():
            found += await go_on(harness, model, range(step, step + 1))
            assert not any(worker._engine.has(ids.model_id(SESSION_ID, m)) for m in (1, 2, 3))

    for found in results.values():
        assert all(same(a, b) for a, b in zip(undisturbed, found, strict=True))


async def test_the_models_used_longest_ago_are_evicted_first(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    worker: Any = await harness.start_worker()
    await run_steps(harness, 0, num_steps=1)
    num_bytes = worker._engine.num_bytes(MODEL_0)
    worker = await harness.start_worker(max_adapter_bytes=2 * num_bytes)
    for model in (1, 2, 0, 3):
        await go_on(harness, model, range(1)) if model == 0 else await run_steps(harness, model, 1)

    held = [worker._engine.has(ids.model_id(SESSION_ID, model)) for model in range(4)]

    assert held == [True, False, False, True]


async def test_a_worker_told_to_stop_leaves_nothing_to_replay(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=3)
    first = await run_steps(harness, 1, num_steps=2)
    await harness.workers[-1].drain()
    await harness.start_worker()

    def replayed(*_: object) -> None:
        raise AssertionError("something was replayed")

    monkeypatch.setattr(Replay, "_run", replayed)
    rest = await go_on(harness, 1, range(2, 3))

    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


async def test_a_pass_spread_over_cycles_is_begun_anew_after_a_worker_was_told_to_stop(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model, min_cycle_tokens=2048)
    await harness.start_worker()
    body = cross_entropy([100] * 60, seed=3)
    results: list[PassResult] = []
    for model in (0, 1):
        await harness.create(model)
        request = await harness.train(body, model)
        if model == 1:
            await run_cycles(harness, 1)
            assert (await harness.future(request)).state is FutureState.PENDING
            await harness.workers[-1].drain()
            record = await store.models.get(MODEL_1)
            assert record is not None
            assert record.snapshot_seq_id == record.applied_seq_id == 0
            await harness.start_worker()
        after = await harness.train(cross_entropy([5]), model)
        await harness.run_until_idle()
        results += [await harness.pass_result(each) for each in (request, after)]

    assert same(results[0], results[2])
    assert same(results[1], results[3])


async def test_a_worker_that_drains_is_given_no_new_cycle(harness: Harness) -> None:
    await harness.create(0)
    await harness.run_until_idle()
    await harness.workers[-1].drain()
    request = await harness.train(cross_entropy([4]))

    assert await harness.scheduler.run_until_idle() == 0

    await harness.start_worker()
    await harness.run_until_idle()
    assert (await harness.pass_result(request)).logprobs


async def test_an_unloaded_model_leaves_nothing_behind_and_later_operations_say_so(
    harness: Harness, redis_url: str
) -> None:
    await run_steps(harness, 0, num_steps=2)
    worker: Any = harness.workers[-1]
    await worker._keeper.snapshot_all()
    assert (await harness.store.models.get(MODEL_0)).snapshot_seq_id == 4  # type: ignore[union-attr]
    unload = await harness.submit(OperationKind.UNLOAD_MODEL, None, tenant_id="tenant-0")
    late = [await harness.train(cross_entropy([4]), 0, "tenant-0")]
    await harness.run_until_idle()
    assert not worker._engine.has(MODEL_0)
    await harness.start_worker()
    late += [await harness.train(cross_entropy([4]), 0, "tenant-0"), await load_another(harness)]
    await harness.run_until_idle()

    assert (await harness.future(unload)).state is FutureState.DONE
    for request in late:
        error = (await harness.future(request)).error
        assert error is not None
        assert "unloaded" in error.message
    record = await harness.store.models.get(MODEL_0)
    assert record is not None
    assert record.is_ended
    assert not (harness.storage.snapshot_dir(MODEL_0, 4, 1).parent).exists()
    keys: Any = harness.store.models._keys  # type: ignore[attr-defined]
    async with aioredis.Redis.from_url(redis_url) as client:
        left = [key async for key in client.scan_iter(match=keys.log(MODEL_0))]
        left += [key async for key in client.scan_iter(match=f"{keys.body(MODEL_0)}*")]
    assert left == []
