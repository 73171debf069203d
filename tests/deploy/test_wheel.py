"""The wheel with each extra holds what its process needs and nothing of the others.

That the processes run from it is shown with deploy/compose.yaml.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from deploy.conftest import EXTRAS

pytestmark = pytest.mark.slow

LACKS = {
    "client": {"torch", "fastapi", "redis", "prometheus_client"},
    "server": {"torch", "peft"},
    "scheduler": {"torch", "fastapi", "peft"},
    "worker": {"fastapi", "uvicorn"},
}
"""The SDK itself requires transformers, which does without torch."""

PACKAGES = {
    "client": "cyclora_client",
    "server": "cyclora_server",
    "scheduler": "cyclora_scheduler",
    "worker": "cyclora_workers",
}


def run(python: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", **variables}
    return subprocess.run(
        [str(python), *arguments],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("name", EXTRAS)
def test_a_process_has_what_it_needs_and_nothing_of_the_others(
    pythons: Mapping[str, Path], name: str
) -> None:
    modules = [*sorted(LACKS[name]), PACKAGES[name]]
    program = (
        "import importlib.util as u, sys\n"
        "print(*[name for name in sys.argv[1:] if u.find_spec(name)])"
    )

    found = run(pythons[name], "-c", program, *modules)

    assert found.stdout.split() == [PACKAGES[name]], found.stderr


def test_the_command_of_the_bare_wheel_runs(pythons: Mapping[str, Path]) -> None:
    python = pythons["client"]

    assert run(python.with_name("cyclora"), "admin", "--help").returncode == 0


def test_the_wheel_holds_our_packages_and_no_others(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()

    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {
        "cyclora_core",
        *PACKAGES.values(),
    }
    for needed in (
        "cyclora_core/setting_names.txt",
        "cyclora_core/py.typed",
        "cyclora_workers/tiny_chat/model/config.json",
    ):
        assert needed in names
