"""Who is over a rate waits; nobody else does, and nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclora_core.types import PendingOperation
from cyclora_core.waiting import Waiting, WaitingModel, WaitingSample
from cyclora_scheduler.allowances import within_allowances
from scheduler.test_planner import CREATE, PASS, SAVE, STEP, model, sample


def left(
    allowances: Mapping[str, float],
    models: Sequence[WaitingModel] = (),
    samples: Sequence[WaitingSample] = (),
) -> tuple[list[list[int]], list[str]]:
    """The seq_ids of each model that is left, and the samples."""
    waiting = within_allowances(Waiting(models, samples, allowances))
    seq_ids = [[o.seq_id for o in each.operations] for each in waiting.models]
    return seq_ids, [each.operation.request_id for each in waiting.samples]


def at(waiting: WaitingModel, submitted_at_ms: int) -> WaitingModel:
    operations = [replace(o, submitted_at_ms=submitted_at_ms) for o in waiting.operations]
    return replace(waiting, operations=operations)


def test_without_a_rate_everything_may_start() -> None:
    waiting = Waiting([model(PASS, STEP)], [sample("s", "t", 10)])

    assert within_allowances(waiting) is waiting
    assert left({"other": -5.0}, waiting.models, waiting.samples) == ([[1, 2]], ["s"])


@pytest.mark.parametrize("allowance", [0.0, -100.0])
def test_with_nothing_left_only_what_costs_nothing_may_start(allowance: float) -> None:
    models = [model(CREATE, STEP, PASS, SAVE), model(PASS, STEP, name="n"), model(SAVE, name="o")]

    assert left({"t": allowance}, models, [sample("s", "t", 10)]) == ([[1, 2], [1]], [])


def test_work_larger_than_the_allowance_starts_and_is_the_last_one() -> None:
    models = [at(model(PASS, STEP, datum_tokens=[500]), 1), at(model(PASS, name="n"), 2)]

    assert left({"t": 1.0}, models) == ([[1, 2]], [])


def test_the_oldest_comes_first_whether_pass_or_sample() -> None:
    older, newer = at(model(PASS), 1), at(model(PASS, name="n"), 3)
    drawn = sample("s", "t", 10)
    drawn = replace(drawn, operation=replace(drawn.operation, submitted_at_ms=2))

    assert left({"t": 11.0}, [newer, older], [drawn]) == ([[1]], ["s"])


def test_a_pass_that_has_begun_goes_on() -> None:
    begun = model(PASS, STEP, datum_tokens=[10, 10], partial=(1, 1))

    assert left({"t": -1000.0}, [begun]) == ([[1, 2]], [])


def test_passes_of_later_cycles_take_nothing_from_others() -> None:
    pipelined = at(model(PASS, STEP, PASS, STEP, PASS), 1)

    assert left({"t": 15.0}, [pipelined, at(model(PASS, name="n"), 2)]) == (
        [[1, 2, 3, 4, 5], [1]],
        [],
    )


@given(
    allowance=st.floats(-50, 200),
    sizes=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), max_size=5),
    drawn=st.lists(st.integers(1, 60), max_size=5),
)
def test_no_more_starts_than_is_left_and_one_request(
    allowance: float, sizes: list[list[int]], drawn: list[int]
) -> None:
    models = [
        at(model(*[PASS] * len(each), name=f"m{i}", datum_tokens=each), i)
        for i, each in enumerate(sizes)
    ]
    samples = [sample(f"s{i}", "t", size) for i, size in enumerate(drawn)]
    waiting = within_allowances(Waiting(models, samples, {"t": allowance}))

    started: list[PendingOperation] = [o for each in waiting.models for o in each.operations]
    started += [each.operation for each in waiting.samples]
    costs = [operation.num_tokens for operation in started]
    assert sum(costs) - max(costs, default=0) < max(allowance, 1)
    everything = sum(len(each.operations) for each in models) + len(samples)
    assert bool(costs) == (allowance > 0 and everything > 0)
