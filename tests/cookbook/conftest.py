"""The cookbook's environment, a server beside it, and one run of a loop as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract.conftest import BASE_MODEL, Running, run_up
from cyclora_client.tokenizers import TokenizerSource, offline_environment
from layered_venv import layered_venv

COOKBOOK = "tinker-cookbook==0.5.8"

_LOOPS = Path(__file__).with_name("loops.py")
_TIMEOUT_S = 150
_TENANT = "cookbook"


@dataclass
class LoopRun:
    """What a loop left in its log folder."""

    exit_code: int
    folder: Path

    def rows(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / name).read_text().splitlines()
        return [json.loads(line) for line in lines]

    def metric(self, name: str) -> list[float]:
        """The metric of all steps that report it, in order."""
        return [row[name] for row in self.rows("metrics.jsonl") if name in row]

    def checkpoint(self, name: str) -> dict[str, Any]:
        return next(row for row in self.rows("checkpoints.jsonl") if row["name"] == name)


RunLoop = Callable[..., LoopRun]


@pytest.fixture(scope="session")
def cookbook_python() -> Path:
    return layered_venv("cookbook-0.5.8", COOKBOOK)


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_up(tmp_path_factory.mktemp("cookbook") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def run_loop(
    cookbook_python: Path, up: Running, tmp_path_factory: pytest.TempPathFactory
) -> RunLoop:
    """Runs a loop to its end; ``folder`` continues an earlier run."""
    hub = tmp_path_factory.mktemp("hub")
    assert TokenizerSource(up.base_url, up.api_key(_TENANT), hub).folder(BASE_MODEL) is not None
    # Nothing else of this process's environment: the cookbook runs with its own packages.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(hub),
        "TINKER_API_KEY": up.api_key(_TENANT),
        "OMP_WAIT_POLICY": "passive",
        **offline_environment(hub),
    }

    def run(
        loop: str,
        checkpoint: str | None = None,
        folder: Path | None = None,
        crash_at_batch: int | None = None,
    ) -> LoopRun:
        folder = folder or tmp_path_factory.mktemp(loop)
        command = [str(cookbook_python), str(_LOOPS), loop, "--base-url", up.base_url]
        command += ["--log-path", str(folder)]
        if checkpoint is not None:
            command += ["--checkpoint", checkpoint]
        crash = {} if crash_at_batch is None else {"CRASH_AT_BATCH": str(crash_at_batch)}
        ran = subprocess.run(
            command,
            env={**environment, **crash},
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        expected = 0 if crash_at_batch is None else 9
        assert ran.returncode == expected, ran.stderr[-6000:]
        return LoopRun(ran.returncode, folder)

    return run


@pytest.fixture(scope="session")
def start_path(up: Running) -> str:
    """An adapter nobody has trained yet, from which runs with equal numbers can start."""
    service = up.service(_TENANT)
    model = service.create_lora_training_client(BASE_MODEL, rank=8, seed=5).result()
    path = model.save_state("start").result().path
    assert path is not None
    return path


@pytest.fixture(scope="session")
def taught(run_loop: RunLoop, start_path: str) -> LoopRun:
    """The supervised loop, run through without interruption."""
    return run_loop("supervised", checkpoint=start_path)
