"""Fixtures of the client's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from client.builders import STANDIN, Events, ProcessHandle, RunningUp
from cyclora_client.up.children import ProcessSpec
from cyclora_client.up.probes import ReadyFile


@pytest.fixture
def start_up(tmp_path: Path) -> Generator[Callable[..., RunningUp]]:
    """Start ``cyclora up`` with stand-ins; whatever still runs is killed after the test."""
    running: list[RunningUp] = []

    def start(server: str = "ready", scheduler: str = "ready", worker: str = "ready") -> RunningUp:
        running.append(RunningUp(tmp_path / "data", (server, scheduler, worker)))
        return running[-1]

    yield start
    for up in running:
        up.close()


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[[str], ProcessSpec]:
    """The spec of a stand-in that behaves as named."""

    def make(behaviour: str, name: str = "child") -> ProcessSpec:
        ready_file = tmp_path / f"{name}.json"
        return ProcessSpec(
            name=name,
            command=[sys.executable, str(STANDIN), behaviour],
            probe=ReadyFile(ready_file),
            log_file=tmp_path / f"{name}.log",
            environment={"CYCLORA_READY_FILE": str(ready_file)},
        )

    return make


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def watch_processes() -> Generator[Callable[[dict[str, Any]], list[ProcessHandle]]]:
    """Handles of the processes that ``cyclora up`` reported."""
    handles: list[ProcessHandle] = []

    def watch(ready: dict[str, Any]) -> list[ProcessHandle]:
        pids = ready["pids"]
        handles.extend(
            ProcessHandle(pid)
            for pid in (pids["server"], pids["scheduler"], *pids["workers"], pids["redis"])
        )
        return handles

    yield watch
    for handle in handles:
        handle.close()
