"""Deficit round robin: nobody starves, the budget is kept, weights are honoured."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclora_scheduler.fairness import take_fairly, take_room

COSTS = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(0, 3000), max_size=8), max_size=6
)


def spent(costs: dict[str, list[int]], taken: dict[str, int]) -> int:
    return sum(sum(costs[tenant][:count]) for tenant, count in taken.items())


@given(costs=COSTS, budget=st.integers(1, 5000))
def test_the_budget_is_kept_unless_a_single_unit_exceeds_it(
    costs: dict[str, list[int]], budget: int
) -> None:
    taken = dict(take_fairly(costs, budget, {}, {}).num_taken)

    paid = [cost for tenant, n in taken.items() for cost in costs[tenant][:n] if cost > 0]
    assert spent(costs, taken) <= budget or len(paid) == 1


@given(costs=COSTS, budget=st.integers(1, 5000))
def test_something_is_always_taken_when_something_waits(
    costs: dict[str, list[int]], budget: int
) -> None:
    shares = take_fairly(costs, budget, {}, {})

    assert any(shares.num_taken.values()) or not any(costs.values())


@given(costs=COSTS, budget=st.integers(1, 5000))
def test_nothing_affordable_is_left_behind(costs: dict[str, list[int]], budget: int) -> None:
    taken = dict(take_fairly(costs, budget, {}, {}).num_taken)

    remaining = budget - spent(costs, taken)
    heads = [costs[t][n] for t, n in taken.items() if n < len(costs[t])]
    assert all(head > remaining for head in heads)


@given(costs=COSTS, budget=st.integers(1, 5000))
def test_repeating_cycles_runs_everything_once_and_in_order(
    costs: dict[str, list[int]], budget: int
) -> None:
    left = {tenant: list(units) for tenant, units in costs.items()}
    ran: dict[str, list[int]] = {tenant: [] for tenant in costs}
    credits: dict[str, float] = {}
    while any(left.values()):
        shares = take_fairly(left, budget, credits, {})
        credits = dict(shares.credits)
        for tenant, count in shares.num_taken.items():
            ran[tenant] += left[tenant][:count]
            del left[tenant][:count]

    assert ran == costs


def test_a_tenant_with_a_long_queue_leaves_room_for_a_small_one() -> None:
    costs = {"large": [1000] * 1000, "small": [100]}

    shares = take_fairly(costs, 4000, {}, {})

    assert shares.num_taken["small"] == 1


def test_weights_one_to_three_give_tokens_one_to_three() -> None:
    left = {"one": [100] * 4000, "three": [100] * 4000}
    ran = dict.fromkeys(left, 0)
    credits: dict[str, float] = {}
    for _ in range(100):
        shares = take_fairly(left, 2000, credits, {"one": 1.0, "three": 3.0})
        credits = dict(shares.credits)
        for tenant, count in shares.num_taken.items():
            ran[tenant] += count
            del left[tenant][:count]

    assert abs(ran["three"] / ran["one"] - 3.0) <= 0.15


def test_a_unit_larger_than_the_budget_gets_its_turn_beside_small_ones() -> None:
    left = {"huge": [5000], "tiny": [10] * 10_000}
    credits: dict[str, float] = {}
    for cycle in range(200):
        shares = take_fairly(left, 100, credits, {})
        credits = dict(shares.credits)
        if shares.num_taken["huge"]:
            assert cycle <= 110  # its fair half of the tokens pays for it by then
            return
        del left["tiny"][: shares.num_taken["tiny"]]

    raise AssertionError("the huge unit starved")


def test_an_idle_tenant_earns_no_credit() -> None:
    shares = take_fairly({"a": [10], "b": []}, 100, {"b": 50.0}, {})

    assert dict(shares.credits) == {}


@given(
    costs=COSTS,
    free=st.integers(-100, 5000),
    more=st.integers(0, 5000),
    debt=st.integers(0, 10**9),
)
def test_what_is_free_is_kept_unless_one_unit_gets_all_of_it(
    costs: dict[str, list[int]], free: int, more: int, debt: int
) -> None:
    total = max(0, free) + more
    shares = take_room(costs, free, total, {"a": -float(debt)}, {})

    paid = [c for t, n in shares.num_taken.items() for c in costs[t][:n] if c > 0]
    assert sum(paid) <= max(0, free) or (len(paid) == 1 and paid[0] > total)


@pytest.mark.parametrize("huge", [900, 1000, 50_000])
def test_a_sample_that_never_finds_enough_free_does_not_starve(huge: int) -> None:
    """Others take what becomes free as soon as it does."""
    left = {"huge": [huge], "tiny": [10] * 10_000}
    credits: dict[str, float] = {}
    for num_cycles in range(100):
        shares = take_room(left, 100, 1000, credits, {})
        credits = dict(shares.credits)
        if shares.num_taken["huge"]:
            assert num_cycles >= 9  # the others got as much as it before
            return
        del left["tiny"][: shares.num_taken["tiny"]]

    raise AssertionError("the huge unit starved")


def test_samples_larger_than_the_memory_do_not_starve_one_that_waits_for_room() -> None:
    """Whenever a little is free one of them could take it, and nothing would be left to grow."""
    left = {"huge": [5000] * 100, "middle": [400] * 2}
    credits: dict[str, float] = {}
    first = take_room(left, 16, 1000, credits, {})
    credits = dict(first.credits)
    del left["huge"][0]

    for _ in range(10):
        shares = take_room(left, 16, 1000, credits, {})
        assert not any(shares.num_taken.values())
    shares = take_room(left, 416, 1000, credits, {})

    assert first.num_taken["huge"] == 1
    assert shares.num_taken == {"huge": 0, "middle": 1}


@pytest.mark.parametrize("debt", [0, 2_000, 400_000, 4_000_000])
def test_who_waits_beside_a_debtor_earns_no_credit_against_somebody_new(debt: int) -> None:
    left = {"debtor": [10] * 10_000, "large": [900] * 100}
    credits: dict[str, float] = {"debtor": -float(debt)}
    for _ in range(2):  # the debt is paid in rounds that pass as one
        shares = take_room(left, 16, 1000, credits, {})
        credits = dict(shares.credits)
        del left["debtor"][: shares.num_taken["debtor"]]

    left["new"] = [10]
    for _num_cycles in range(10):
        shares = take_room(left, 100, 1000, credits, {})
        if shares.num_taken["new"]:
            return
        credits = dict(shares.credits)
        for tenant, count in shares.num_taken.items():
            del left[tenant][:count]

    raise AssertionError("the newcomer waits for what others earned")


def test_a_debt_outlives_the_queue_and_is_paid_in_the_rounds_of_others() -> None:
    """Sent one by one, units larger than a cycle would else cost no more than the cycle."""
    first = take_fairly({"huge": [5000]}, 1000, {}, {})
    owed = -first.credits["huge"]

    second = take_fairly({"other": [10] * 1000}, 1000, first.credits, {})
    third = take_fairly({"other": [10] * 1000, "huge": [5000]}, 1000, second.credits, {})

    assert owed > 0
    assert 900 <= second.credits["huge"] + owed <= 1200
    assert third.num_taken == {"other": 100, "huge": 0}


def test_nobody_owes_anything_when_nobody_waits() -> None:
    assert dict(take_fairly({}, 1000, {"huge": -5000.0}, {}).credits) == {}


def test_a_heavy_tenant_leaves_a_light_one_its_part_of_every_cycle() -> None:
    costs = {"heavy": [100] * 1000, "light": [100] * 1000}

    shares = take_fairly(costs, 10_000, {}, {"heavy": 9.0})

    assert shares.num_taken == {"heavy": 90, "light": 10}


def test_who_must_wait_for_its_own_step_earns_meanwhile_up_to_one_budget() -> None:
    costs = {"stepping": [100], "other": [100] * 1000}

    going_on = take_fairly(costs, 1000, {}, {}, goes_on={"stepping"})
    at_its_end = take_fairly(costs, 1000, {}, {})
    heavy = take_fairly(costs, 1000, {}, {"stepping": 100.0}, goes_on={"stepping"})

    assert 700 <= going_on.credits["stepping"] <= 1000
    assert at_its_end.credits.get("stepping", 0.0) == 0
    assert heavy.credits["stepping"] == 1000


def test_small_units_that_come_every_cycle_keep_no_large_one_out() -> None:
    credits: Mapping[str, float] = {}
    taken: list[int] = []
    for _ in range(4):
        shares = take_fairly({"large": [2048] * 10, "small": [16]}, 2048, credits, {})
        credits = shares.credits
        taken.append(shares.num_taken["large"])

    assert sum(taken) >= 2


def test_what_fits_nobody_is_earned_by_weight_up_to_one_budget() -> None:
    costs = {"one": [600] * 9, "three": [600] * 9, "small": [400]}

    shares = take_fairly(costs, 1000, {"small": 400.0, "one": 900.0}, {"three": 3.0})

    assert shares.credits["one"] <= 1000
    assert all(credit <= 1000 for credit in shares.credits.values())
