"""All benchmarks, one after the other, and the pages that are written from what they print.

A benchmark is a script of this folder with a ``main()`` that

- takes ``--quick``: at most 40 seconds on two cores, to see that it works and about how fast;
- prints Markdown to stdout: for each measurement ``machine.caption``, an empty line and
  ``machine.table``; at the end, where aims exist, ``machine.aims_table``;
- draws progress with ``machine.progress``, which writes to stderr.

Whatever it prints is kept as ``docs/performance/NAME.json`` when ``--write`` is given, tables that
carry a ``machine.Plot`` are drawn to ``docs/performance/NAME.svg``, and both are shown in
``docs/performance.md`` between ``<!-- NAME -->`` and ``<!-- /NAME -->``. A script that fails is
named at the end and what the page says of it stays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from plots import draw
from report import Report, aims, aims_in_short, fill, missed

from cyclora_client.up.specs import SHORT_WAITS

BENCHMARKS = (
    "train",
    "grpo",
    "sample",
    "agreement",
    "handover",
    "server",
    "load",
    "fairness",
    "memory",
    "gpu",
)
_PROCESSES = ("core", "server", "scheduler", "workers", "client")
_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent


def run(name: str, arguments: Sequence[str]) -> Report | None:
    """Run one benchmark as a process of its own; None when it failed."""
    print(f"\n== {name}", file=sys.stderr, flush=True)
    started_mono_s = time.perf_counter()
    # As `cyclora up` has a worker's threads wait.
    environment = {**SHORT_WAITS, **os.environ}
    # This checkout is measured, whichever one is installed.
    environment["PYTHONPATH"] = os.pathsep.join(str(_ROOT / folder) for folder in _PROCESSES)
    command = [sys.executable, str(_HERE / f"{name}.py"), *arguments]
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - started_mono_s
    print(done.stdout, flush=True)
    print(f"== {name}: {seconds:.0f} s, exit code {done.returncode}", file=sys.stderr, flush=True)
    if done.returncode != 0:
        return None
    return Report.parse(name, round(seconds), done.stdout)


def write(report: Report, root: Path = _ROOT) -> None:
    """Keep a report as data."""
    folder = _kept(root)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    (folder / f"{report.name}.json").write_text(text + "\n")


def render(root: Path = _ROOT) -> None:
    """Write the pages from what is kept."""
    folder = _kept(root)
    reports = [
        Report.from_json(json.loads(path.read_text()))
        for name in BENCHMARKS
        if (path := folder / f"{name}.json").exists()
    ]
    page_file, readme = root / "docs" / "performance.md", root / "README.md"
    page = page_file.read_text()
    for report in reports:
        text = f"{report.markdown()}\n\nThe run took {report.seconds:.0f} s."
        if draw(report, folder / f"{report.name}.svg"):
            text = f"![{report.name}](performance/{report.name}.svg)\n\n{text}"
        page = fill(page, report.name, text)
    page = fill(page, "missed", missed(reports))
    page_file.write_text(fill(page, "aims", aims(reports)))
    readme.write_text(fill(readme.read_text(), "aims", aims_in_short(reports)))


def _kept(root: Path) -> Path:
    return root / "docs" / "performance"


def _can_run(name: str, is_quick: bool) -> bool:
    script = _HERE / f"{name}.py"
    if not script.exists():
        return False
    if is_quick and '"--quick"' not in script.read_text():
        print(f"== {name}: left out, it has no --quick", file=sys.stderr)
        return False
    if name == "gpu":
        import torch

        if not torch.cuda.is_available():
            print("== gpu: no CUDA device here", file=sys.stderr)
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="all of them in under 3 minutes")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--write", action="store_true", help="keep the results, write the pages")
    parser.add_argument("--render", action="store_true", help="write the pages, run nothing")
    options = parser.parse_args()
    if options.render:
        render()
        return
    failed: list[str] = []
    for name in options.only:
        if not _can_run(name, options.quick):
            continue
        report = run(name, ["--quick"] if options.quick else [])
        if report is None:
            failed.append(name)
        elif options.write:
            write(report)
            render()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
