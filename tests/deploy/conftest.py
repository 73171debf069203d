"""The wheel that people install, and environments that hold it and what it requires."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy.linked_venv import linked_venv

ROOT = Path(__file__).parents[2]

EXTRAS = {"client": None, "server": "server", "scheduler": "scheduler", "worker": "workers"}
"""What to install for each kind of process; the Dockerfile's targets have the same names."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, timeout=120)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def pythons(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """An interpreter for each kind of process, with the wheel and what its extra requires."""
    folder = tmp_path_factory.mktemp("venvs")
    return {name: linked_venv(folder / name, wheel, extra) for name, extra in EXTRAS.items()}
