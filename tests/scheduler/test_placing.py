"""Which worker gets a model, and which ones give models up."""

from __future__ import annotations

from collections.abc import Sequence

from cyclora_core.operations import OperationKind
from cyclora_core.placement import Action, Wish
from cyclora_core.types import PendingOperation
from cyclora_core.waiting import (
    HeldModel,
    Waiting,
    WaitingModel,
    WaitingWish,
    WorkerState,
    WorkerStats,
)
from cyclora_scheduler.placing import Moves, plan_moves
from cyclora_scheduler.planner import Budget, Credits, Plan, plan_cycle

BUDGET = Budget(1000, 0)


def worker(
    worker_id: str,
    *,
    is_free: bool = True,
    is_draining: bool = False,
    num_models: int = 0,
    tokens_per_s: float = 0.0,
    free_adapter_bytes: int = 100,
) -> WorkerState:
    stats = WorkerStats(tokens_per_s, free_adapter_bytes=free_adapter_bytes, max_adapter_bytes=1000)
    return WorkerState(worker_id, "base", True, is_free, stats, is_draining, num_models)


def model(name: str, holder: str | None = None) -> WaitingModel:
    step = PendingOperation(f"{name}:1", OperationKind.OPTIM_STEP, "t", name, 1, 0)
    return WaitingModel(name, "t", holder, 3, -1, 0, [step])


def wish(name: str, action: Action, holder: str | None, to: str = "") -> WaitingWish:
    return WaitingWish(HeldModel(name, "t", holder, 3), Wish(action, to))


def plan(moves: Moves, models: Sequence[WaitingModel], here: str, alive: str) -> Plan:
    waiting, workers = Waiting(models, []), frozenset(alive)
    return plan_cycle(waiting, here, workers, BUDGET, Credits({}, {}), {}, moves)


def test_new_models_go_where_most_room_is() -> None:
    workers = [worker("a", num_models=5), worker("b", num_models=2), worker("c", num_models=9)]
    waiting = Waiting([model(f"m{n}") for n in range(4)], [])

    moves = plan_moves(waiting, workers[0], workers)

    assert list(moves.homes.values()) == ["b", "b", "b", "a"]
    assert {
        each.planned.model_id for each in plan(moves, waiting.models, "a", "abc").assignments
    } == {"m3"}


def test_a_faster_worker_gets_more_of_them() -> None:
    workers = [worker("a", tokens_per_s=1000), worker("b", tokens_per_s=3000)]
    waiting = Waiting([model(f"m{n:02}") for n in range(40)], [])

    homes = list(plan_moves(waiting, workers[0], workers).homes.values())

    assert (homes.count("a"), homes.count("b")) == (10, 30)


def test_a_worker_whose_adapter_memory_is_full_gets_none_while_another_has_some() -> None:
    workers = [worker("a", free_adapter_bytes=0), worker("b", num_models=50)]

    assert plan_moves(Waiting([model("m")], []), workers[0], workers).homes == {"m": "b"}


def test_who_is_busy_is_not_waited_for() -> None:
    workers = [worker("a", num_models=9), worker("b", is_free=False)]

    assert plan_moves(Waiting([model("m")], []), workers[0], workers).homes == {"m": "a"}


def test_a_draining_worker_gets_nothing_and_gives_up_what_it_has() -> None:
    workers = [worker("a", is_draining=True), worker("b", num_models=100)]
    held = [HeldModel("mine", "t", "a", 3)]
    waiting = Waiting([model("new"), model("mine", "a"), model("theirs", "b")], [])

    moves = plan_moves(waiting, workers[0], workers, held)
    planned = plan(moves, waiting.models, "a", "ab")

    assert moves.homes == {"new": "b"}
    assert not planned.assignments
    assert [each.model_id for each in planned.let_go] == ["mine"]


def test_a_model_waits_while_all_workers_are_draining() -> None:
    workers = [worker("a", is_draining=True)]

    moves = plan_moves(Waiting([model("new")], []), workers[0], workers)

    assert plan(moves, [model("new")], "a", "a").is_empty


def test_a_move_begins_where_the_model_is_and_ends_where_it_is_wanted() -> None:
    workers = [worker("a"), worker("b")]
    move = wish("m", Action.MOVE, "a", "b")
    waiting = Waiting([model("m", "a")], [], wishes=[move])

    at_a = plan(plan_moves(waiting, workers[0], workers), waiting.models, "a", "ab")
    at_b = plan(plan_moves(waiting, workers[1], workers), waiting.models, "b", "ab")
    let_go = Waiting([model("m")], [], wishes=[wish("m", Action.MOVE, None, "b")])
    then_a = plan(plan_moves(let_go, workers[0], workers), let_go.models, "a", "ab")
    then_b = plan(plan_moves(let_go, workers[1], workers), let_go.models, "b", "ab")

    assert [each.model_id for each in at_a.let_go] == ["m"]
    assert not at_a.assignments
    assert at_b.is_empty
    assert then_a.is_empty
    (arrived,) = then_b.assignments
    assert (arrived.planned.epoch, arrived.wish) == (4, move.wish)


def test_a_model_without_operations_comes_because_it_is_wished() -> None:
    workers = [worker("a"), worker("b", num_models=3)]
    waiting = Waiting([], [], wishes=[wish("m", Action.LOAD, None)])

    at_a = plan(plan_moves(waiting, workers[0], workers), [], "a", "ab")
    at_b = plan(plan_moves(waiting, workers[1], workers), [], "b", "ab")

    (loaded,) = at_a.assignments
    assert (loaded.planned.model_id, loaded.planned.operations) == ("m", [])
    assert at_b.is_empty


def test_a_model_is_loaded_by_the_worker_that_has_it_however_much_that_has() -> None:
    workers = [worker("a"), worker("b", num_models=300)]
    waiting = Waiting([], [], wishes=[wish("m", Action.LOAD, "b")])

    assert plan(plan_moves(waiting, workers[0], workers), [], "a", "ab").is_empty
    (loaded,) = plan(plan_moves(waiting, workers[1], workers), [], "b", "ab").assignments
    assert loaded.planned.epoch == 3


def test_wishes_that_cannot_be_or_need_not_be_are_over() -> None:
    workers = [worker("a"), worker("b", is_draining=True)]
    gone = wish("m1", Action.MOVE, "a", "dead")
    draining = wish("m2", Action.MOVE, "a", "b")
    in_storage = wish("m3", Action.UNLOAD, None)
    ended = WaitingWish(HeldModel("m4", "t", "a", 3), Wish(Action.LOAD), has_ended=True)

    moves = plan_moves(
        Waiting([], [], wishes=[gone, draining, in_storage, ended]), workers[0], workers
    )

    assert [(each.model.model_id, note) for each, note in moves.over] == [
        ("m1", "worker dead has ended"),
        ("m2", "worker b is draining"),
        ("m3", ""),
        ("m4", "the model has ended"),
    ]
    assert not moves.let_go
