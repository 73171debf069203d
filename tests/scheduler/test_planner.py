"""What shares a cycle and what waits for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclora_core.operations import OperationKind
from cyclora_core.types import DatumRange, PendingOperation
from cyclora_core.waiting import Waiting, WaitingModel, WaitingSample
from cyclora_scheduler.planner import Budget, Credits, Plan, plan_cycle

PASS = OperationKind.FORWARD_BACKWARD
FORWARD = OperationKind.FORWARD
STEP = OperationKind.OPTIM_STEP
SAVE = OperationKind.SAVE_WEIGHTS_FOR_SAMPLER
CREATE = OperationKind.CREATE_MODEL
LARGE = Budget(1_000_000, 1_000_000, 1_000_000)


def operation(
    kind: OperationKind,
    seq_id: int,
    datum_tokens: Sequence[int] = (10,),
    model: str = "m",
    shared_tokens: Sequence[int] = (),
) -> PendingOperation:
    sizes = tuple(datum_tokens) if kind.is_pass else ()
    return PendingOperation(
        f"{model}:{seq_id}", kind, "t", model, seq_id, sum(sizes), sizes, shared_tokens
    )


def model(
    *kinds: OperationKind,
    name: str = "m",
    tenant: str = "t",
    worker: str | None = "w",
    first: int = 1,
    datum_tokens: Sequence[int] = (10,),
    partial: tuple[int, int] = (-1, 0),
    epoch: int = 4,
) -> WaitingModel:
    operations = [
        operation(kind, first + i, datum_tokens, model=name) for i, kind in enumerate(kinds)
    ]
    return WaitingModel(name, tenant, worker, epoch, partial[0], partial[1], operations)


def sample(request_id: str, tenant: str, num_tokens: int) -> WaitingSample:
    pending = PendingOperation(request_id, OperationKind.SAMPLE, tenant, "s", 1, num_tokens)
    return WaitingSample(pending, request_id)


def plan(
    models: Sequence[WaitingModel] = (),
    samples: Sequence[WaitingSample] = (),
    budget: Budget = LARGE,
    alive: frozenset[str] = frozenset({"w"}),
) -> Plan:
    return plan_cycle(Waiting(models, samples), "w", alive, budget, Credits({}, {}), {})


def seq_ids(plan: Plan, index: int = 0) -> list[int]:
    return [operation.seq_id for operation in plan.assignments[index].planned.operations]


def test_a_forward_backward_and_its_optim_step_share_a_cycle() -> None:
    assert seq_ids(plan([model(PASS, STEP)])) == [1, 2]


def test_the_next_pass_waits_for_the_step_before_it() -> None:
    assert seq_ids(plan([model(PASS, STEP, PASS, STEP)])) == [1, 2]


def test_saves_behind_a_step_stay_in_its_cycle() -> None:
    assert seq_ids(plan([model(PASS, PASS, STEP, SAVE, PASS)])) == [1, 2, 3, 4]


def test_a_step_left_over_from_an_earlier_cycle_goes_before_the_passes() -> None:
    assert seq_ids(plan([model(STEP, PASS, STEP, PASS)])) == [1, 2, 3]


def test_forward_and_forward_backward_are_one_run_of_passes() -> None:
    assert seq_ids(plan([model(CREATE, FORWARD, PASS, STEP, first=0)])) == [0, 1, 2, 3]


def test_steps_alone_run_together() -> None:
    assert seq_ids(plan([model(STEP, SAVE, STEP)])) == [1, 2, 3]


def test_models_of_many_tenants_share_one_cycle() -> None:
    models = [model(PASS, STEP, name=f"m{i}", tenant=f"t{i}") for i in range(20)]

    planned = plan(models)

    assert len(planned.assignments) == 20
    assert planned.num_tokens == 200


def test_a_model_stays_with_its_living_worker() -> None:
    planned = plan([model(PASS, worker="other")], alive=frozenset({"w", "other"}))

    assert planned.is_empty


def test_a_model_whose_worker_died_comes_here_with_the_next_epoch() -> None:
    planned = plan([model(PASS, worker="dead")])

    assignment = planned.assignments[0]
    assert (assignment.expected_worker_id, assignment.expected_epoch) == ("dead", 4)
    assert assignment.planned.epoch == 5


def test_a_model_that_stays_keeps_its_epoch() -> None:
    assert plan([model(PASS)]).assignments[0].planned.epoch == 4


def test_an_operation_larger_than_the_budget_is_spread_datum_by_datum() -> None:
    large = model(PASS, STEP, datum_tokens=[1500] * 4)

    planned = plan([large], budget=Budget(3000, 0))

    (only,) = planned.assignments[0].planned.operations
    assert (only.seq_id, only.datum_range) == (1, DatumRange(0, 2))


def test_shared_tokens_cost_once_per_block() -> None:
    """Blocks of 1500 + 2000 and of 1500 + 500 tokens."""
    group = operation(PASS, 1, [2000] * 5, shared_tokens=[0] + [1500] * 4)
    waiting = WaitingModel("m", "t", "w", 4, -1, 0, [group])

    assert plan([waiting]).num_tokens == 5500
    (part,) = plan([waiting], budget=Budget(3500, 0)).assignments[0].planned.operations
    assert part.datum_range == DatumRange(0, 4)


def test_a_spread_operation_goes_on_where_its_worker_stopped() -> None:
    rest = model(PASS, STEP, datum_tokens=[1500] * 4, partial=(1, 2))

    first, second = plan([rest]).assignments[0].planned.operations

    assert first.datum_range == DatumRange(2, 4)
    assert second.seq_id == 2


def test_the_part_that_a_dead_worker_ran_is_run_again() -> None:
    rest = model(PASS, STEP, datum_tokens=[1500] * 4, partial=(1, 2), worker="dead")

    first = plan([rest]).assignments[0].planned.operations[0]

    assert first.datum_range is None


def test_a_single_datum_larger_than_the_budget_still_runs() -> None:
    planned = plan([model(PASS, datum_tokens=[9000])], budget=Budget(100, 0))

    assert planned.num_tokens == 9000


def test_samples_are_admitted_up_to_the_free_memory() -> None:
    samples = [sample(f"s{i}", "t", 40) for i in range(5)]

    planned = plan(samples=samples, budget=Budget(100, 100, 1000))

    assert [each.request_id for each in planned.planned_samples] == ["s0", "s1"]


@pytest.mark.parametrize("free", [0, 39])
def test_without_free_memory_no_sample_is_admitted(free: int) -> None:
    assert plan(samples=[sample("s", "t", 40)], budget=Budget(100, free, 1000)).is_empty


@pytest.mark.parametrize(("free", "is_admitted"), [(0, False), (16, True), (1000, True)])
def test_a_sample_larger_than_the_memory_runs_as_soon_as_anything_is_free(
    free: int, is_admitted: bool
) -> None:
    planned = plan(samples=[sample("s", "t", 2000)], budget=Budget(100, free, 1000))

    assert [each.request_id for each in planned.planned_samples] == ["s"] * is_admitted


def test_samples_larger_than_the_memory_pay_for_what_they_generate() -> None:
    """A tenant that sends nothing else gets no more tokens than one with small samples."""
    huge = [sample(f"h{i}", "huge", 3000) for i in range(100)]
    small = [sample(f"s{i}", "small", 40) for i in range(10_000)]
    tokens, credits = {"huge": 0, "small": 0}, Credits({}, {})
    for _ in range(2000):
        waiting = Waiting([], [*huge, *small])
        planned = plan_cycle(waiting, "w", frozenset("w"), Budget(100, 100, 1000), credits, {})
        credits = planned.credits
        for taken in planned.samples:
            tokens[taken.operation.tenant_id] += taken.operation.num_tokens
            (huge if taken.operation.tenant_id == "huge" else small).remove(taken)

    assert tokens["huge"] >= 3000
    assert abs(tokens["huge"] - tokens["small"]) <= 3000 + 1000


def test_the_same_input_gives_the_same_plan() -> None:
    models = [model(PASS, STEP, name=f"m{i}", tenant=f"t{i % 3}") for i in range(9)]

    assert plan(models, budget=Budget(50, 0)) == plan(models[::-1], budget=Budget(50, 0))


@pytest.mark.parametrize(
    ("holder", "goes_here"), [(None, True), ("w", True), ("other", False), ("dead", True)]
)
def test_a_sample_waits_for_the_living_worker_that_alone_has_its_weights(
    holder: str | None, goes_here: bool
) -> None:
    waiting = replace(sample("s", "t", 40), worker_id=holder)

    planned = plan(
        samples=[waiting], budget=Budget(100, 100, 1000), alive=frozenset("w") | {"other"}
    )

    assert bool(planned.samples) == goes_here


KINDS = st.lists(st.sampled_from([PASS, FORWARD, STEP, SAVE]), min_size=1, max_size=8)


@given(
    logs=st.lists(KINDS, min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    budget=st.integers(1, 10_000),
)
def test_cycle_by_cycle_everything_runs_once_in_order(
    logs: list[list[OperationKind]], sizes: list[int], budget: int
) -> None:
    models = {
        f"m{i}": model(*kinds, name=f"m{i}", tenant=f"t{i % 2}", datum_tokens=sizes)
        for i, kinds in enumerate(logs)
    }
    ran: dict[str, list[tuple[int, int]]] = {name: [] for name in models}
    for _ in range(2000):
        waiting = [each for each in models.values() if each.operations]
        if not waiting:
            break
        planned = plan(waiting, budget=Budget(budget, 0))
        assert not planned.is_empty
        for assignment in planned.assignments:
            models[assignment.planned.model_id] = _run(
                models[assignment.planned.model_id], assignment.planned.operations, ran
            )

    data = len(sizes)
    for i, kinds in enumerate(logs):
        expected = [
            (seq_id, datum)
            for seq_id, kind in enumerate(kinds, 1)
            for datum in (range(data) if kind.is_pass else range(1))
        ]
        assert ran[f"m{i}"] == expected


def _run(
    model: WaitingModel, operations: Sequence[object], ran: dict[str, list[tuple[int, int]]]
) -> WaitingModel:
    """Execute a planned run on a plain model of a worker."""
    from cyclora_core.types import PlannedOperation

    left = list(model.operations)
    partial = (-1, 0)
    for each in operations:
        assert isinstance(each, PlannedOperation)
        assert each.seq_id == left[0].seq_id
        size = len(left[0].datum_tokens) if each.kind.is_pass else 1
        part = each.datum_range or DatumRange(0, size)
        ran[model.model_id] += [(each.seq_id, datum) for datum in range(part.start, part.stop)]
        if part.stop == size:
            left.pop(0)
            partial = (-1, 0)
        else:
            partial = (each.seq_id, part.stop)
    return WaitingModel(
        model.model_id, model.tenant_id, "w", model.epoch, partial[0], partial[1], left
    )
