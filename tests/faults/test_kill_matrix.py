"""SIGKILL of any process, at any moment, changes nothing that a tenant gets or pays for."""

from __future__ import annotations

import pytest

from faults.conftest import CurrentDeployment
from faults.matrix import CASES, Case, Result, Verdict, play_armed, run_case
from faults.points import Kind, Point
from faults.scenario import Record, Run

pytestmark = [pytest.mark.contract, pytest.mark.slow]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_survives_a_kill(
    case: Case,
    current: CurrentDeployment,
    expected: Record,
    matrix_results: list[Result],
) -> None:
    result = run_case(current.get(), case, expected)
    matrix_results.append(result)
    if result.verdict is not Verdict.SURVIVED:
        current.discard()

    assert result.verdict is Verdict.SURVIVED, result.detail


def test_an_undisturbed_run_leaves_the_same_record_twice(
    current: CurrentDeployment, expected: Record
) -> None:
    assert Run(current.get()).play().differences(expected) == []


@pytest.mark.parametrize(
    ("point", "kind"),
    [(Point.IN_FORWARD, Kind.FORWARD_BACKWARD), (Point.BEFORE_SETTLE, Kind.SAMPLE)],
)
def test_a_worker_that_only_waits_at_a_tripwire_leaves_the_same_record(
    point: Point, kind: Kind, current: CurrentDeployment, expected: Record
) -> None:
    pids: list[int] = []

    outcome = play_armed(current.get(), point, kind, pids.append)

    assert pids == [current.get().pid("worker")]
    assert outcome.record == expected
