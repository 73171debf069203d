"""Samples of tenants below their share of a worker's memory, while others hold more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cyclora_core.operations import OperationKind
from cyclora_core.types import PendingOperation
from cyclora_core.waiting import Waiting, WaitingSample
from cyclora_scheduler.memory_share import fair_parts, take_back
from cyclora_scheduler.planner import Budget, Credits, plan_cycle

TENANTS = st.sampled_from("abcd")


def test_a_memory_full_of_one_tenants_samples_has_room_for_the_others() -> None:
    taken = take_back({"small": [100] * 20}, {"huge": 5000}, 1000, {})

    assert taken == {"small": 5}


def test_parts_go_by_weight() -> None:
    costs = {"one": [10] * 100, "three": [10] * 100}

    assert take_back(costs, {"huge": 9000}, 1000, {"three": 3.0}) == {"one": 20, "three": 60}


def test_nobody_is_taken_anything_that_holds_no_more_than_its_part() -> None:
    assert take_back({"new": [10]}, {"a": 500, "b": 300}, 1600, {}) == {"new": 0}


def test_one_large_sample_may_come_of_a_tenant_that_has_none() -> None:
    assert take_back({"new": [5000] * 3}, {"huge": 900}, 1000, {}) == {"new": 1}
    assert take_back({"new": [5000] * 3}, {"huge": 900, "new": 10}, 1000, {}) == {"new": 0}


@given(
    costs=st.dictionaries(TENANTS, st.lists(st.integers(1, 500), min_size=1, max_size=5)),
    used=st.dictionaries(TENANTS, st.integers(1, 5000)),
    weights=st.dictionaries(TENANTS, st.floats(0.01, 100.0)),
)
def test_who_has_its_part_sends_no_more(
    costs: dict[str, list[int]], used: dict[str, int], weights: dict[str, float]
) -> None:
    taken = take_back(costs, used, 1000, weights)

    parts = fair_parts(used, list(costs), 1000, weights)
    for tenant, count in taken.items():
        holds = used.get(tenant, 0) + sum(costs[tenant][:count])
        assert count == 0 or holds <= parts[tenant] or (count == 1 and tenant not in used)


def test_a_plan_admits_beside_a_full_memory_and_charges_for_it() -> None:
    waiting = [
        WaitingSample(
            PendingOperation(f"s{n}", OperationKind.SAMPLE, "small", "s", n, 100), f"s{n}"
        )
        for n in range(9)
    ]
    budget = Budget(100, 0, 1000, {"huge": 3000})

    plan = plan_cycle(Waiting([], waiting), "w", frozenset("w"), budget, Credits({}, {}), {})

    assert [each.request_id for each in plan.planned_samples] == ["s0", "s1", "s2", "s3", "s4"]
    assert plan.credits.samples["small"] < 0
