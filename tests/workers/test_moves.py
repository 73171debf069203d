"""Models that are loaded, unloaded and moved, and workers that are drained: the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind, PassResult
from cyclora_core.placement import Action, Place, PlacedModel, Wish
from cyclora_core.records import FutureState, WorkerStatus
from cyclora_core.store import Store
from cyclora_workers.base_model import BaseModel
from cyclora_workers.snapshot_writer import SnapshotWriter
from workers.builders import cross_entropy
from workers.harness import SESSION_ID, STEP, Harness, run_steps, same
from workers.test_recovery import run_cycles

MODEL_1 = ids.model_id(SESSION_ID, 1)
LENGTHS = [7, 13, 1, 9]


async def placed(harness: Harness, model_id: str = MODEL_1) -> PlacedModel:
    (found,) = await harness.store.placements.placed([model_id])
    return found


async def status(harness: Harness, worker_id: str) -> WorkerStatus:
    return next(w for w in await harness.store.workers.list() if w.worker_id == worker_id)


async def go_on(harness: Harness, steps: range) -> list[PassResult]:
    requests = [
        await harness.train(cross_entropy(LENGTHS, seed=step), 1, "tenant-1") for step in steps
    ]
    await harness.run_all_until_idle()
    return [await harness.pass_result(request) for request in requests]


async def test_a_model_moved_in_mid_training_goes_on_with_the_same_bits(harness: Harness) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=6)
    first = await run_steps(harness, 1, num_steps=3)
    await harness.start_worker(name="other")

    await harness.store.placements.wish(MODEL_1, Wish(Action.MOVE, "worker-1"))
    rest = await go_on(harness, range(3, 6))

    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))
    found = await placed(harness)
    assert (found.model.worker_id, found.wish, found.note) == ("worker-1", None, "")
    assert found.held.place is Place.DEVICE
    assert found.model.epoch == 2


async def test_a_move_needs_no_operation_and_takes_unused_gradients_along(
    harness: Harness,
) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=2)
    await harness.create(1, tenant="tenant-1")
    await harness.submit(
        OperationKind.FORWARD_BACKWARD,
        cross_entropy(LENGTHS, seed=0),
        model=1,
        tenant_id="tenant-1",
    )
    await harness.run_all_until_idle()
    await harness.start_worker(name="other")

    await harness.store.placements.wish(MODEL_1, Wish(Action.MOVE, "worker-1"))
    await harness.run_all_until_idle()
    moved = await placed(harness)
    await harness.submit(OperationKind.OPTIM_STEP, STEP, model=1, tenant_id="tenant-1")
    (second,) = await go_on(harness, range(1, 2))

    assert (moved.model.worker_id, moved.held.place) == ("worker-1", Place.DEVICE)
    assert moved.model.snapshot_seq_id == moved.model.applied_seq_id == 1
    assert same(undisturbed[1], second)


async def test_an_unloaded_model_is_in_storage_and_comes_back_with_the_same_bits(
    harness: Harness,
) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=4)
    first = await run_steps(harness, 1, num_steps=2)

    await harness.store.placements.wish(MODEL_1, Wish(Action.UNLOAD))
    await harness.run_all_until_idle()
    unloaded = await placed(harness)
    rest = await go_on(harness, range(2, 4))

    assert (unloaded.model.worker_id, unloaded.held.place) == (None, Place.STORAGE)
    assert unloaded.wish is None
    assert not unloaded.model.is_ended
    assert unloaded.model.snapshot_seq_id == unloaded.model.applied_seq_id
    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


async def test_a_model_is_loaded_before_its_next_operation(harness: Harness) -> None:
    await run_steps(harness, 1, num_steps=2)
    await harness.store.placements.wish(MODEL_1, Wish(Action.UNLOAD))
    await harness.run_all_until_idle()

    await harness.store.placements.wish(MODEL_1, Wish(Action.LOAD))
    await harness.run_all_until_idle()

    found = await placed(harness)
    assert (found.model.worker_id, found.held.place, found.wish) == (
        "worker-0",
        Place.DEVICE,
        None,
    )
    assert found.held.num_bytes > 0


async def test_a_drained_worker_has_nothing_left_and_its_models_go_on_elsewhere(
    harness: Harness,
) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=6)
    first = await run_steps(harness, 1, num_steps=3)
    await harness.start_worker(name="other")

    await harness.store.workers.set_draining("worker-0", True)
    draining = await status(harness, "worker-0")
    rest = await go_on(harness, range(3, 6))

    assert (draining.is_draining, draining.is_drained, draining.num_models) == (True, False, 2)
    drained = await status(harness, "worker-0")
    assert (drained.is_drained, drained.num_models) == (True, 0)
    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))
    assert (await placed(harness)).model.worker_id == "worker-1"


async def test_without_another_worker_models_wait_until_a_drained_one_resumes(
    harness: Harness,
) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=2)
    first = await run_steps(harness, 1, num_steps=1)
    await harness.store.workers.set_draining("worker-0", True)
    request = await harness.train(cross_entropy(LENGTHS, seed=1), 1, "tenant-1")
    await harness.run_all_until_idle()
    waits = await harness.future(request)
    is_drained = (await status(harness, "worker-0")).is_drained

    await harness.store.workers.set_draining("worker-0", False)
    await harness.run_all_until_idle()

    assert waits.state is FutureState.PENDING
    assert is_drained
    assert same(undisturbed[0], first[0])
    assert same(undisturbed[1], await harness.pass_result(request))


async def test_a_model_that_storage_does_not_take_stays_and_says_so(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=3)
    first = await run_steps(harness, 1, num_steps=1)

    async def refused(*_args: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(SnapshotWriter, "write_files", refused)
        await harness.store.placements.wish(MODEL_1, Wish(Action.UNLOAD))
        await harness.run_all_until_idle()
    kept = await placed(harness)
    rest = await go_on(harness, range(1, 3))

    assert kept.model.worker_id == "worker-0"
    assert kept.wish is None
    assert "storage did not take" in kept.note
    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


@pytest.mark.parametrize("action", [Action.UNLOAD, Action.LOAD])
async def test_a_pass_in_progress_ends_with_the_same_bits_where_its_model_stays(
    store: Store,
    clock: ManualClock,
    tmp_path: Path,
    base_model: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
    action: Action,
) -> None:
    """The state is not written, or the model is here already: neither fails the pass."""
    harness = Harness(store, clock, tmp_path, base_model, min_cycle_tokens=2048)
    await harness.start_worker()
    results: list[PassResult] = []

    async def refused(*_args: object) -> None:
        raise OSError("disk full")

    for model in (0, 1):
        await harness.create(model)
        request = await harness.train(cross_entropy([100] * 60, seed=3), model)
        if model == 1:
            await run_cycles(harness, 1)
            assert (await harness.future(request)).state is FutureState.PENDING
            with monkeypatch.context() as patched:
                patched.setattr(SnapshotWriter, "write_files", refused)
                await store.placements.wish(MODEL_1, Wish(action))
                await run_cycles(harness, 1)
        after = await harness.train(cross_entropy([5]), model)
        await harness.run_until_idle()
        results += [await harness.pass_result(each) for each in (request, after)]

    assert (await placed(harness)).wish is None
    assert same(results[0], results[2])
    assert same(results[1], results[3])


async def test_a_worker_that_dies_while_a_model_moves_loses_nothing(harness: Harness) -> None:
    undisturbed = await run_steps(harness, 0, num_steps=4)
    first = await run_steps(harness, 1, num_steps=2)
    await harness.start_worker(name="other")
    await harness.store.placements.wish(MODEL_1, Wish(Action.MOVE, "worker-1"))
    await harness.scheduler.tick()  # worker-0 is told to give it up, and dies before it does
    await harness.store.workers.retire("worker-0")
    del harness.workers[0]

    rest = await go_on(harness, range(2, 4))

    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))
    assert (await placed(harness)).model.worker_id == "worker-1"
