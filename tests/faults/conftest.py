"""Deployments of the fault tests, and the table of the kill matrix at the end of the session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults.deployment import PLAIN_WORKER, Deployment, Shape, deployed
from faults.matrix import Result, table
from faults.processes import Processes
from faults.scenario import Record, Run

_RESULTS = pytest.StashKey[list[Result]]()
_TABLE_OPTION = "--faults-table"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_TABLE_OPTION, type=Path, help="write the kill matrix to this file")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    results = config.stash.get(_RESULTS, [])
    if not results:
        return
    text = table(results)
    terminalreporter.section("kill matrix")
    terminalreporter.write_line(text)
    # The option exists only where this folder was named on the command line.
    path: Path | None = config.getoption(_TABLE_OPTION, default=None)
    if path is not None:
        path.write_text(text + "\n")


@pytest.fixture(scope="session")
def matrix_results(pytestconfig: pytest.Config) -> list[Result]:
    """Collects what the terminal summary shows."""
    return pytestconfig.stash.setdefault(_RESULTS, [])


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    if sys.platform != "linux":
        pytest.skip("needs process descriptors and parent death signals of Linux")
    with Processes() as running:
        yield running


@pytest.fixture(scope="session")
def expected(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of an undisturbed run on a worker without any tripwires."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with deployed(processes, folder, Shape(worker_command=PLAIN_WORKER)) as deployment:
        return Run(deployment).play()


class CurrentDeployment:
    """One deployment for all cases; a case that failed leaves it in doubt and gets a new one."""

    def __init__(self, processes: Processes, new_folder: Callable[[], Path]) -> None:
        self._processes = processes
        self._new_folder = new_folder
        self._running = ExitStack()
        self._deployment: Deployment | None = None

    def get(self) -> Deployment:
        if self._deployment is None:
            context = deployed(self._processes, self._new_folder())
            self._deployment = self._running.enter_context(context)
        return self._deployment

    def discard(self) -> None:
        self._deployment = None
        self._running.close()


@pytest.fixture(scope="session")
def current(
    processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CurrentDeployment]:
    deployment = CurrentDeployment(processes, lambda: tmp_path_factory.mktemp("matrix"))
    yield deployment
    deployment.discard()
