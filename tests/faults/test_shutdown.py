"""SIGTERM in the midst of a run: everything stops in order, and what starts again goes on."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from faults.conftest import CurrentDeployment
from faults.matrix import logs, play_armed
from faults.points import Kind, Point
from faults.processes import Ending
from faults.scenario import Record

pytestmark = [pytest.mark.contract, pytest.mark.slow]


@pytest.mark.parametrize("kind", Kind)
def test_a_worker_that_is_told_to_stop_leaves_nothing_to_replay(
    kind: Kind, current: CurrentDeployment, expected: Record
) -> None:
    deployment = current.get()

    def terminate(pid: int) -> None:
        os.kill(pid, signal.SIGTERM)  # it ends once it may go on and has finished its cycle

    outcome = play_armed(deployment, Point.IN_FORWARD, kind, terminate)

    assert outcome.record == expected, logs(deployment)
    assert outcome.trip is not None
    assert deployment.ending(outcome.trip.pid).code == 0
    restored = deployment.events("worker", "model restored")
    mine = [row for row in restored if row["model_id"] == outcome.run.model_id]
    assert [row["num_replayed"] for row in mine] == [0]


@pytest.mark.parametrize("name", ["server", "scheduler", "valkey"])
def test_a_run_goes_on_when_a_process_is_told_to_stop_and_starts_again(
    name: str, current: CurrentDeployment, expected: Record
) -> None:
    deployment = current.get()
    endings: list[Ending] = []

    def terminate(_: int) -> None:
        endings.append(deployment.kill(name, signal.SIGTERM))

    outcome = play_armed(deployment, Point.BEFORE_SETTLE, Kind.OPTIM_STEP, terminate)

    assert outcome.record == expected, logs(deployment)
    assert [ending.code for ending in endings] == [0]


def test_a_run_goes_on_after_everything_was_stopped_and_started_on_the_same_folder(
    current: CurrentDeployment, expected: Record
) -> None:
    deployment = current.get()
    endings: list[Ending] = []

    def restart_all() -> None:
        endings.extend(deployment.stop(signal.SIGTERM))
        deployment.start()

    restarting = threading.Thread(target=restart_all)

    def begin(_: int) -> None:
        restarting.start()  # the worker that waits here is one of those that are to stop

    outcome = play_armed(deployment, Point.BEFORE_SETTLE, Kind.OPTIM_STEP, begin)
    restarting.join()

    assert outcome.record == expected, logs(deployment)
    assert {ending.name.partition("/")[2]: ending.code for ending in endings} == dict.fromkeys(
        ["worker", "scheduler", "server", "valkey"], 0
    )
