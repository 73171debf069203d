"""The scripts that ``benchmarks/run.py`` runs keep what it asks of them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import run
from report import Report, Table

FOLDER = Path(run.__file__).parent
ROOT = FOLDER.parent
# One table each, without a deployment.
SMALLEST = [
    ("gpu", ["--quick", "--device", "cpu"]),
    ("memory", ["--quick", "--parts", "adapters"]),
]

ASK_ALL = """
import contextlib, runpy, sys
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
for name in names:
    sys.argv = [f"{name}.py", "--quick", "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(f"{folder}/{name}.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    folders = [str(ROOT / name) for name in ("core", "server", "scheduler", "workers", "client")]
    return {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(folders)}


@pytest.mark.parametrize("name", run.BENCHMARKS)
def test_every_benchmark_is_a_script_with_a_quick_form(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    options = [
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "add_argument"
        and isinstance(call.args[0], ast.Constant)
    ]

    assert "--quick" in options
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


@pytest.mark.slow
def test_every_benchmark_takes_its_options(environment: dict[str, str]) -> None:
    """All in one process, for which torch and the SDK are imported once."""
    command = [sys.executable, "-c", ASK_ALL, str(FOLDER), *run.BENCHMARKS]

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.count("--quick") >= len(run.BENCHMARKS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), SMALLEST)
def test_what_a_benchmark_prints_is_a_report(
    name: str, arguments: list[str], environment: dict[str, str]
) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    report = Report.parse(name, 1.0, done.stdout)

    text, numbers = report.parts
    assert isinstance(text, str)
    assert isinstance(numbers, Table)
    assert numbers.plot is not None
    drawn = [number for column in numbers.plot.y for number in numbers.numbers(column)]
    assert drawn
    assert None not in drawn
    assert f"`python benchmarks/{name}.py {' '.join(arguments)}`" in text
    assert Report.from_json(report.to_json()) == report
