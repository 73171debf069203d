"""One server serves the SDK's versions of a year, unpatched, side by side."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from contract.conftest import BASE_MODEL, Running
from layered_venv import layered_venv

pytestmark = [pytest.mark.contract, pytest.mark.slow]

VERSIONS = ["0.7.0", "0.13.1", "0.18.1", "0.22.7", "0.25.0", "0.29.1", "0.34.0", "0.38.0"]
"""JSON both ways; the first with TTLs; the first with protobuf results; with protobuf requests; the
last before sequence ids; with external weights; the last with archives; the newest."""

_SCRIPT = Path(__file__).with_name("script.py")
_TIMEOUT_S = 120


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_trains_saves_loads_samples_and_lists(up: Running, version: str) -> None:
    python = layered_venv(f"tinker-{version}", f"tinker=={version}", no_deps=True)

    outcome = run_script(python, up, f"sdk-{version}")

    assert outcome["version"] == version
    steps: dict[str, str | None] = outcome["steps"]
    assert {name: error for name, error in steps.items() if error is not None} == {}
    assert len(steps) >= 20


def run_script(python: Path, up: Running, tenant: str) -> dict[str, Any]:
    """What the script prints when it is run by this Python, as a tenant of its own."""
    ran = subprocess.run(
        [python, str(_SCRIPT), up.base_url, up.api_key(tenant), BASE_MODEL],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
        # Our own packages must not reach it, and neither must settings of whoever runs the tests.
        env={"PATH": "/usr/bin:/bin", "HOME": str(python.parent), "HF_HUB_OFFLINE": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])
