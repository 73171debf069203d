"""The SDK's command line against a running server; each command is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinker

from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

Command = Callable[..., str]
NewModel = Callable[..., tinker.TrainingClient]
TENANT = "commands"


@pytest.fixture
def command(up: Running, tmp_path: Path) -> Command:
    """Runs ``tinker``; returns what it printed."""
    own = {"TINKER_BASE_URL": up.base_url, "HOME": str(tmp_path), "NO_COLOR": "1"}

    def run(*words: str, key: str | None = up.api_key(TENANT), typed: str = "") -> str:
        inherited = {name: value for name, value in os.environ.items() if "TINKER" not in name}
        credential = {} if key is None else {"TINKER_API_KEY": key}
        ran = subprocess.run(
            [sys.executable, "-m", "tinker.cli", *words],
            env={**inherited, **own, **credential},
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return run


def read(command: Command, *words: str) -> Any:
    return json.loads(command("-f", "json", *words))


def test_the_version_is_told(command: Command) -> None:
    assert tinker.__version__ in command("version")


def test_a_pasted_key_is_stored_used_and_forgotten(up: Running, command: Command) -> None:
    command("auth", "login", key=None, typed=f"{up.api_key(TENANT)}\n")

    assert BASE_MODEL in command("model", "list", key=None)
    command("auth", "logout", key=None, typed="y\n")
    with pytest.raises(AssertionError):
        command("model", "list", key=None)


def test_the_status_of_a_key_is_told(command: Command) -> None:
    assert command("auth", "status")


def test_base_models_are_listed(command: Command) -> None:
    assert BASE_MODEL in command("model", "list")


def test_runs_and_checkpoints_are_listed_described_and_deleted(
    command: Command, new_model: NewModel
) -> None:
    model = new_model(TENANT)
    path = model.save_state("shown").result().path
    assert path is not None

    assert model.model_id in json.dumps(read(command, "run", "list"))
    assert model.model_id in json.dumps(read(command, "run", "info", model.model_id))
    assert path in json.dumps(read(command, "checkpoint", "list", "--run-id", model.model_id))
    assert path in json.dumps(read(command, "checkpoint", "info", path))
    command("checkpoint", "delete", path, "--yes")
    left = json.dumps(read(command, "checkpoint", "list", "--run-id", model.model_id))
    assert path not in left
