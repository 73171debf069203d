"""What every benchmark says of its numbers, and the Markdown it prints them in.

``caption`` names hardware, versions, date and command; ``table`` and ``aims_table`` hold numbers.
``report.py`` reads the same Markdown back, so what is printed is also what is kept and drawn.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")

_PACKAGES = ("torch", "transformers", "peft", "tinker")
# Those by which the speed of matrix products differs most: x86, then ARM.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16", "i8mm")
AIMS_HEADER = ["aim", "where", "wanted", "measured", "met"]


def caption(what: str, *, num_threads: int | None = None) -> str:
    """One line to stand above a table.

    Args:
        what: The measurement, without a full stop.
        num_threads: Of the process that computes; by default this process's torch.
    """
    if num_threads is None:
        num_threads = _torch().get_num_threads()
    spins = os.environ.get("GOMP_SPINCOUNT")
    wait = f"{os.environ.get('OMP_WAIT_POLICY', 'active')}ly"
    wait += f" after {spins} spins" if spins else ""
    versions = [f"{name} {found}" for name in _PACKAGES if (found := _version(name))]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return (
        f"{what}. {processor()}; {num_threads} OMP threads, which wait {wait}, "
        f"load {os.getloadavg()[0]:.1f}; {', '.join(versions)}, Python "
        f"{platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}; `{command}`."
    )


def processor() -> str:
    """The GPU, or else the CPU with its number of cores and the flags that matter."""
    if "torch" in sys.modules and _torch().cuda.is_available():
        return _torch().cuda.get_device_name()
    name, flags = platform.processor(), set[str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
    known = " ".join(flag for flag in _FLAGS if flag in flags)
    return f"{name}, {os.cpu_count()} cores, {known or 'no known vector flags'}"


def _torch() -> Any:
    import torch

    return torch


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Plot:
    """What of a table is drawn: lines of some columns over one."""

    title: str
    x: str
    y: Sequence[str]
    unit: str = "tokens/s"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], plot: Plot | None = None) -> str:
    """A Markdown table; what is to be drawn of it stands above in a comment."""
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
    if plot is not None:
        drawn = " | ".join([plot.title, plot.unit, plot.x, *plot.y])
        lines = [f"<!-- plot: {drawn} -->", "", *lines]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Aim:
    """A number that was promised, and what was found.

    ``name`` is the same wherever the same thing is measured; ``where`` tells the cases apart.
    """

    name: str
    where: str
    wanted: float
    measured: float
    is_bound_above: bool = False
    """It must not be exceeded; else it must be reached."""
    unit: str = ""

    @property
    def is_met(self) -> bool:
        if self.is_bound_above:
            return self.measured <= self.wanted
        return self.measured >= self.wanted

    def row(self) -> list[str]:
        sign = "at most" if self.is_bound_above else "at least"
        measured = f"{self.measured:,.0f}" if abs(self.measured) >= 100 else f"{self.measured:.3g}"
        return [
            self.name,
            self.where,
            f"{sign} {self.wanted:g}{self.unit}",
            f"{measured}{self.unit}",
            "yes" if self.is_met else "no",
        ]


def aims_table(aims: Iterable[Aim]) -> str:
    """The table by which the page and the README know what was promised."""
    return table(AIMS_HEADER, [aim.row() for aim in aims])


def progress(items: Sequence[T] | range, description: str) -> Iterator[Any]:
    """A progress bar that leaves stdout to the tables."""
    yield from track(items, description=description, console=Console(stderr=True))
