"""What a hostile body costs the server in memory, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.memory_probe import BOMBS

pytestmark = pytest.mark.slow

PROBE = Path(__file__).with_name("memory_probe.py")
ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "server", "scheduler", "workers", "client", "tests")
MAX_GROWTH_MIB = 320
"""The bound on a decompressed body (128 MiB), twice while its parts are joined, and some room."""

STATUS = {"sparse tensor of 2^62 cells": 200, "json of brackets": 413}
"""A sparse tensor is a sound message: its request becomes a failed future."""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_within_bounded_memory(bomb: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    command = [sys.executable, str(PROBE), bomb]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(str(ROOT / f) for f in FOLDERS)}
    with body.open("wb") as written:
        subprocess.run([*command, "--build"], stdout=written, check=True, env=environment)

    with body.open("rb") as sent:
        ran = subprocess.run(
            command, stdin=sent, capture_output=True, check=True, env=environment, timeout=120
        )

    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["status"] == STATUS.get(bomb, 413)
    assert found["grown_mib"] < MAX_GROWTH_MIB
