from __future__ import annotations

import pytest

from cyclora_client.up.restart import (
    MAX_DEATHS_BEFORE_READY,
    GiveUp,
    Restart,
    RestartPolicy,
)
from cyclora_core.clock import ManualClock
from cyclora_core.environment import EXIT_CONFIGURATION


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def policy(clock: ManualClock) -> RestartPolicy:
    return RestartPolicy(clock)


def ready_and_dead(policy: RestartPolicy, clock: ManualClock, ready_s: float) -> float:
    policy.became_ready()
    clock.advance(ready_s)
    decision = policy.died(-9)
    assert isinstance(decision, Restart)
    return decision.delay_s


def test_delays_double_up_to_five_seconds(policy: RestartPolicy, clock: ManualClock) -> None:
    delays = [ready_and_dead(policy, clock, 0.1) for _ in range(7)]

    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_a_child_that_ran_for_long_starts_again_from_the_shortest_delay(
    policy: RestartPolicy, clock: ManualClock
) -> None:
    for _ in range(5):
        ready_and_dead(policy, clock, 0.1)

    assert ready_and_dead(policy, clock, 30.0) == pytest.approx(0.2)


def test_a_child_that_is_never_ready_is_given_up_at_its_fifth_death(
    policy: RestartPolicy, clock: ManualClock
) -> None:
    """However slow its attempts are, or a large model with a bad path would be tried forever."""
    decisions: list[Restart | GiveUp] = []
    for _ in range(MAX_DEATHS_BEFORE_READY):
        clock.advance(60)
        decisions.append(policy.died(1))

    assert [type(decision) for decision in decisions] == [Restart] * 4 + [GiveUp]


def test_a_child_that_was_ready_once_is_never_given_up(policy: RestartPolicy) -> None:
    policy.became_ready()

    assert all(isinstance(policy.died(1), Restart) for _ in range(100))


def test_settings_that_cannot_work_are_not_tried_again(policy: RestartPolicy) -> None:
    assert policy.died(EXIT_CONFIGURATION) == GiveUp("cannot run with these settings")
