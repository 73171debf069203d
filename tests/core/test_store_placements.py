"""Wishes for models and workers, and who lets go of what, against a real Valkey."""

from __future__ import annotations

import pytest

from core.builders import BASE_MODEL, add_worker, model_id, submission, submit
from core.test_store_operations import CREATE, assign, gathered
from cyclora_core.errors import NotFound
from cyclora_core.operations import OperationKind
from cyclora_core.placement import Action, Held, Place, Wish
from cyclora_core.store import Store
from cyclora_core.store.audit import DEPLOYMENT
from cyclora_core.types import Cycle, DatumRange, PlannedModel, PlannedOperation
from cyclora_core.waiting import Assignment, WorkerStats

UNLOAD = Wish(Action.UNLOAD)


@pytest.fixture
async def model(store: Store) -> str:
    """One that worker-1 has under epoch 1."""
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    await assign(store)
    return model_id()


async def audited(store: Store, tenant_id: str) -> list[str]:
    return [entry.event for entry in await store.audit.list(tenant_id, 0, 2**62)]


async def test_a_wish_waits_with_the_work_and_is_audited(store: Store, model: str) -> None:
    await store.placements.wish(model, UNLOAD, "key-1")

    (waiting,) = (await gathered(store)).wishes
    assert (waiting.wish, waiting.model.worker_id, waiting.model.epoch) == (UNLOAD, "worker-1", 1)
    assert await audited(store, "tenant-a") == ["model_unload"]


async def test_nothing_can_be_wished_of_a_model_that_does_not_exist(store: Store) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await store.placements.wish("nobody", UNLOAD)


async def test_the_later_of_two_wishes_counts(store: Store, model: str) -> None:
    await store.placements.wish(model, UNLOAD)
    await store.placements.wish(model, Wish(Action.MOVE, "worker-2"))

    await store.placements.end_wish(BASE_MODEL, model, UNLOAD, "too late")

    (placed,) = await store.placements.placed([model])
    assert (placed.wish, placed.note) == (Wish(Action.MOVE, "worker-2"), "")


async def test_a_worker_lets_go_once_and_only_of_what_it_has(store: Store, model: str) -> None:
    await store.placements.wish(model, UNLOAD)

    assert not await store.placements.let_go(BASE_MODEL, model, "worker-2", 1)
    assert not await store.placements.let_go(BASE_MODEL, model, "worker-1", 7)
    assert [each.model_id for each in await store.placements.of_worker("worker-1")] == [model]
    assert await store.placements.let_go(BASE_MODEL, model, "worker-1", 1)
    assert not await store.placements.let_go(BASE_MODEL, model, "worker-1", 1)

    waiting = await gathered(store)
    assert waiting.wishes == []
    assert waiting.models[0].worker_id is None
    assert await store.placements.of_worker("worker-1") == []


async def test_who_cannot_let_go_keeps_the_model_and_says_why(store: Store, model: str) -> None:
    await store.placements.wish(model, UNLOAD)
    await store.placements.let_go(BASE_MODEL, model, "worker-1", 1, "disk full")

    (placed,) = await store.placements.list(worker_id="worker-1")
    assert (placed.wish, placed.note) == (None, "disk full")
    await store.placements.wish(model, UNLOAD)
    (again,) = await store.placements.list(tenant_id="tenant-a")
    assert again.note == ""


async def test_what_a_worker_holds_is_shown_until_it_is_buried(store: Store, model: str) -> None:
    held = Held(Place.DEVICE, 1234)
    await store.placements.show("worker-1", {model: held, "of nobody": held})

    (placed,) = await store.placements.list()
    assert placed.held == held
    await store.workers.retire("worker-1")
    await store.cycles.lead("t", 30)
    await store.cycles.bury("t", "worker-1", BASE_MODEL)
    await store.placements.show("worker-1", {model: held})
    (lost,) = await store.placements.list(tenant_id="tenant-a")
    assert lost.held == Held(Place.STORAGE, 0)


async def test_draining_is_kept_with_the_worker_and_audited(store: Store, model: str) -> None:
    await store.workers.set_draining("worker-1", True, "key-1")
    (draining,) = await store.workers.list()
    (planned_for,) = await store.cycles.workers()
    await store.placements.let_go(BASE_MODEL, model, "worker-1", 1)
    await store.workers.release("worker-1", 1, planned_for.stats)
    (drained,) = await store.workers.list()
    await store.workers.set_draining("worker-1", False)
    (resumed,) = await store.workers.list()

    assert (draining.is_draining, draining.is_drained, draining.num_models) == (True, False, 1)
    assert planned_for.is_draining
    assert drained.is_drained
    assert not resumed.is_draining
    assert sorted(await audited(store, DEPLOYMENT)) == ["worker_drain", "worker_resume"]


async def test_a_worker_that_does_not_live_cannot_be_drained(store: Store, model: str) -> None:
    await store.workers.retire("worker-1")

    with pytest.raises(NotFound, match="worker-1"):
        await store.workers.set_draining("worker-1", True)


async def test_a_load_of_a_model_that_is_here_keeps_the_part_of_a_pass_that_ran(
    store: Store, model: str
) -> None:
    await store.workers.release("worker-1", 1, WorkerStats())
    part = PlannedOperation(f"{model}:1", OperationKind.FORWARD_BACKWARD, 1, DatumRange(0, 2))
    planned = [PlannedModel(model, "tenant-a", 1, [part]), PlannedModel(model, "tenant-a", 1, [])]
    await submit(store, submission(OperationKind.FORWARD_BACKWARD, 1, datum_tokens=[5, 5, 5]))

    for cycle_id, each in enumerate(planned, 2):
        cycle = Cycle(0, BASE_MODEL, "worker-1", [each], [])
        assignment = Assignment(each, "worker-1", 1)
        assert await store.cycles.dispatch("t", cycle, [assignment], []) == cycle_id
        await store.workers.release("worker-1", cycle_id, WorkerStats())

    (waiting,) = (await gathered(store)).models
    assert (waiting.partial_seq_id, waiting.partial_stop) == (1, 2)
