"""Environments with other package versions than ours, kept in ``.cache/venvs`` between runs.

Each is a virtual environment of its own that finds what it lacks in the environment of the tests,
so that only what differs is downloaded: seconds, instead of another copy of torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[1] / ".cache" / "venvs"
_INSTALL_TIMEOUT_S = 240


def layered_venv(name: str, *requirements: str, no_deps: bool = False) -> Path:
    """The Python of an environment with these requirements over our own.

    ``no_deps`` leaves the dependencies of the requirements to ours. Where pip cannot install them,
    for want of a network, it is a skip on a laptop and a failure in CI.
    """
    folder = _FOLDER / name
    ours = sysconfig.get_path("purelib")
    # Made anew when anything it was made from has changed, or when it was left unfinished.
    stamp, recipe = folder / "recipe", "\n".join([sys.version, ours, *requirements])
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == recipe:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    packages = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    (Path(packages) / "ours.pth").write_text(f"{ours}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    # What our environment has in the same version is installed again: the test is about this one.
    options = ["--no-deps", "--ignore-installed"] if no_deps else []
    command = [*pip, "--disable-pip-version-check", *options, *requirements]
    installed = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT_S
    )
    if installed.returncode != 0:
        reason = f"pip could not install {', '.join(requirements)}: {installed.stderr[-1000:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    stamp.write_text(recipe)
    return python
