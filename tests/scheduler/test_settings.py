from __future__ import annotations

import pytest
from pydantic import ValidationError

from cyclora_scheduler.settings import SchedulerSettings


@pytest.mark.parametrize(("idle_wait_s", "leader_lease_s"), [(0.5, 0.5), (1.5, 2.0), (2.0, 1.0)])
def test_a_leader_that_looks_too_seldom_to_keep_its_lease_is_refused(
    idle_wait_s: float, leader_lease_s: float
) -> None:
    with pytest.raises(ValidationError, match="a leader loses its lease"):
        SchedulerSettings(idle_wait_s=idle_wait_s, leader_lease_s=leader_lease_s)


def test_a_leader_may_look_just_within_three_quarters_of_its_lease() -> None:
    settings = SchedulerSettings(idle_wait_s=1.49, leader_lease_s=2.0)

    assert settings.idle_wait_s == 1.49


def test_an_unknown_log_level_is_refused() -> None:
    with pytest.raises(ValidationError):
        SchedulerSettings(log_level="LOUD")
