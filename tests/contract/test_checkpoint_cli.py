"""Checkpoints and training runs through the SDK's own command line, each command a new process."""

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

from contract.command_line import has_succeeded
from contract.conftest import BASE_MODEL, Running

pytestmark = [pytest.mark.contract, pytest.mark.slow]

NewModel = Callable[..., tinker.TrainingClient]
TENANT = "terminal"


def call(up: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"TINKER_API_KEY": up.api_key(TENANT), "TINKER_BASE_URL": up.base_url}
    return subprocess.run(
        [Path(sys.executable).with_name("tinker"), "-f", "json", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def shown(up: Running, *arguments: str) -> Any:
    """What a command that succeeds prints."""
    done = call(up, *arguments)
    assert has_succeeded(done), done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else None


def test_the_command_line_shows_a_run_and_its_checkpoints(up: Running, new_model: NewModel) -> None:
    model = new_model(TENANT, rank=4)
    path = model.save_state("shown").result().path

    runs = shown(up, "run", "list")["runs"]
    run = shown(up, "run", "info", model.model_id)
    everything = shown(up, "checkpoint", "list")["checkpoints"]
    of_run = shown(up, "checkpoint", "list", "--run-id", model.model_id)["checkpoints"]
    info = shown(up, "checkpoint", "info", path)

    assert model.model_id in [each["training_run_id"] for each in runs]
    assert (run["base_model"], run["lora_rank"]) == (BASE_MODEL, 4)
    assert path in [each["tinker_path"] for each in everything]
    assert [each["tinker_path"] for each in of_run] == [path]
    assert (info["tinker_path"], info["lora_rank"]) == (path, 4)


def test_the_command_line_publishes_keeps_and_deletes_checkpoints(
    up: Running, new_model: NewModel
) -> None:
    model = new_model(TENANT)
    path = model.save_state("state").result().path
    sampler = model.save_weights_for_sampler("sampler").result().path
    rest = up.rest(TENANT)

    def listed() -> dict[str, Any]:
        found = rest.list_checkpoints(model.model_id).result().checkpoints
        return {each.tinker_path: each for each in found}

    for _ in range(2):
        shown(up, "checkpoint", "publish", path)
    assert listed()[path].public
    shown(up, "checkpoint", "unpublish", path)
    assert not listed()[path].public
    shown(up, "checkpoint", "set-ttl", "--ttl", "7200", path)
    assert listed()[path].expires_at is not None
    shown(up, "checkpoint", "set-ttl", "--remove", path)
    assert listed()[path].expires_at is None
    assert "ttl_seconds is 5" in call(up, "checkpoint", "set-ttl", "--ttl", "5", path).stderr
    deleted = shown(up, "checkpoint", "delete", "-y", sampler)
    assert deleted == {"deleted_count": 1, "failed": []}
    assert list(listed()) == [path]
    arguments = ("--run-id", model.model_id, "--type", "weights", "-y")
    assert shown(up, "checkpoint", "delete", *arguments) == {"deleted_count": 1, "failed": []}
    assert listed() == {}
