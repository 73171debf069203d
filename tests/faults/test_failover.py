"""Others take over from a process that is gone for good or silent, and a silent one is fenced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.deployment import Deployment, Shape, deployed
from faults.matrix import logs, play_armed
from faults.points import Kind, Point
from faults.processes import Processes
from faults.scenario import Record

pytestmark = [pytest.mark.contract, pytest.mark.slow]

_WORKERS = ("one", "other")
_SCHEDULERS = ("first", "standby")
_EXIT_FENCED = 75
_TAKEOVER_S = 5.0
"""Several times the leader's lease; without a takeover nothing would ever happen."""


@pytest.fixture
def two_workers(processes: Processes, tmp_path: Path) -> Iterator[Deployment]:
    shape = Shape(workers=_WORKERS, worker_lease_s=1.0)
    with deployed(processes, tmp_path, shape) as deployment:
        yield deployment


@pytest.mark.parametrize("kind", Kind)
def test_the_other_worker_finishes_the_run_of_one_that_is_gone_for_good(
    kind: Kind, two_workers: Deployment, expected: Record
) -> None:
    def kill_for_good(pid: int) -> None:
        two_workers.stop_one(two_workers.name_of(pid))

    outcome = play_armed(two_workers, Point.IN_FORWARD, kind, kill_for_good)

    assert outcome.record == expected, logs(two_workers)
    assert outcome.trip is not None


@pytest.mark.parametrize("kind", Kind)
def test_a_worker_that_wakes_after_the_other_finished_its_run_changes_nothing(
    kind: Kind, two_workers: Deployment, expected: Record
) -> None:
    outcome = play_armed(two_workers, Point.BEFORE_SETTLE, kind, _pause)
    assert outcome.trip is not None
    os.kill(outcome.trip.pid, signal.SIGCONT)
    ending = two_workers.ending(outcome.trip.pid)

    assert ending.code == _EXIT_FENCED
    assert outcome.record == expected, logs(two_workers)
    assert outcome.run.collect() == expected


@pytest.mark.parametrize("kind", Kind)
def test_a_worker_that_wakes_while_the_other_redoes_its_work_settles_nothing(
    kind: Kind, two_workers: Deployment, expected: Record
) -> None:
    """Both hold a finished outcome of one operation, and the operation is still unsettled."""
    codes: list[int] = []

    def pause_until_the_other_is_as_far(pid: int) -> None:
        _pause(pid)

        def wake(_: int) -> None:
            os.kill(pid, signal.SIGCONT)
            codes.append(two_workers.ending(pid).code)

        two_workers.wire.arm(Point.BEFORE_SETTLE, kind, wake)

    outcome = play_armed(two_workers, Point.BEFORE_SETTLE, kind, pause_until_the_other_is_as_far)

    assert codes == [_EXIT_FENCED]
    assert outcome.record == expected, logs(two_workers)


def test_a_save_that_wakes_after_another_worker_did_it_leaves_the_same_files(
    two_workers: Deployment, expected: Record
) -> None:
    """Storage has no fence: the late files replace the others, and must be the same."""
    outcome = play_armed(two_workers, Point.IN_FORWARD, Kind.SAVE, _pause)
    assert outcome.trip is not None
    os.kill(outcome.trip.pid, signal.SIGCONT)
    two_workers.ending(outcome.trip.pid)

    assert outcome.record == expected, logs(two_workers)
    assert outcome.run.collect() == expected


def test_a_standby_scheduler_takes_over_from_a_silent_one_and_no_cycle_is_planned_twice(
    processes: Processes, tmp_path: Path, expected: Record
) -> None:
    shape = Shape(schedulers=_SCHEDULERS)
    took_s: list[float] = []
    with deployed(processes, tmp_path, shape) as deployment:
        deployment.wait_for(lambda: _leader(deployment) is not None, _SCHEDULERS[0])
        leader = _leader(deployment)
        assert leader is not None
        (standby,) = set(_SCHEDULERS) - {leader}
        leader_pid = deployment.pid(leader)

        def wake_leader(_: int) -> None:
            os.kill(leader_pid, signal.SIGCONT)

        def pause_leader(_: int) -> None:
            _pause(leader_pid)
            paused_s = time.monotonic()
            deployment.wait_for(lambda: _says_it_leads(deployment, standby), standby)
            took_s.append(time.monotonic() - paused_s)
            deployment.wire.arm(Point.BEFORE_SETTLE, Kind.LOAD, wake_leader)

        outcome = play_armed(deployment, Point.AFTER_CLAIM, Kind.FORWARD_BACKWARD, pause_leader)
        deployment.wait_for(lambda: not _says_it_leads(deployment, leader), leader)

        planned = [
            row["cycle_id"] for n in _SCHEDULERS for row in deployment.events(n, "cycle planned")
        ]
        assert outcome.record == expected, logs(deployment)
        assert sorted(set(planned)) == sorted(planned)
        assert took_s[0] < _TAKEOVER_S


def _pause(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def _leader(deployment: Deployment) -> str | None:
    return next((name for name in _SCHEDULERS if _says_it_leads(deployment, name)), None)


def _says_it_leads(deployment: Deployment, name: str) -> bool:
    changes = deployment.events(name, "leadership changed")
    return bool(changes) and changes[-1]["is_leading"]
