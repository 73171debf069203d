"""What a benchmark printed, as data; and pages that are written from such data.

A report is the Markdown of one run in parts: paragraphs and tables. A page has places for reports,
between ``<!-- train -->`` and ``<!-- /train -->``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from machine import AIMS_HEADER, Plot, table

_PLOT = re.compile(r"<!-- plot: (.*) -->")
# What rich leaves behind where a benchmark draws its progress on stdout.
_BAR = re.compile("[\u2501\u2578\u257a]")


@dataclass(frozen=True, slots=True)
class Table:
    header: list[str]
    rows: list[list[str]]
    plot: Plot | None = None

    @property
    def is_of_aims(self) -> bool:
        return self.header == AIMS_HEADER

    def numbers(self, column: str) -> list[float | None]:
        """A column as numbers: of ``4,732 tokens/s`` the 4732, of text None."""
        index = self.header.index(column)
        found = [re.match(r"[-+]?[\d,]*\.?\d+", row[index]) for row in self.rows]
        return [float(each[0].replace(",", "")) if each else None for each in found]


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one benchmark."""

    name: str
    seconds: float
    parts: list[str | Table] = field(default_factory=list[str | Table])

    @classmethod
    def parse(cls, name: str, seconds: float, stdout: str) -> Report:
        """From what the benchmark printed."""
        parts: list[str | Table] = []
        plot: Plot | None = None
        for lines in _paragraphs(stdout):
            if drawn := _PLOT.fullmatch(lines[0]):
                title, unit, x, *y = drawn[1].split(" | ")
                plot = Plot(title, x, y, unit)
                continue
            if all(line.startswith("|") for line in lines) and len(lines) > 1:
                header, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
                parts.append(Table(header, rows, plot))
                plot = None
            else:
                parts.append("\n".join(lines))
        return cls(name, seconds, parts)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Inverse of ``to_json``."""
        parts: list[str | Table] = []
        for part in data["parts"]:
            if isinstance(part, str):
                parts.append(part)
            else:
                plot = Plot(**part["plot"]) if part["plot"] else None
                parts.append(Table(part["header"], part["rows"], plot))
        return cls(data["name"], data["seconds"], parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table)]

    def markdown(self) -> str:
        """Everything but the aims, which the page shows in one place."""
        shown = [
            table(part.header, part.rows) if isinstance(part, Table) else part
            for part in self.parts
            if not (isinstance(part, Table) and part.is_of_aims)
        ]
        return "\n\n".join(shown)


def _paragraphs(text: str) -> Iterable[list[str]]:
    """Runs of lines without an empty one; a table ends where its lines do, too."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        line = "" if _BAR.search(line) else line.rstrip()
        is_other = bool(lines) and line.startswith("|") != lines[-1].startswith("|")
        if lines and (not line or is_other):
            yield lines
            lines = []
        if line:
            lines.append(line)


def aims(reports: Iterable[Report]) -> str:
    """All aims of all reports, as one table."""
    return table(AIMS_HEADER, [row for each in reports for row in _aims(each)])


def missed(reports: Iterable[Report]) -> str:
    """The aims that were not met, as one table; a sentence where there are none."""
    rows = [
        [*row[:4], f"{_number(row[3]) / wanted:.2f}" if (wanted := _number(row[2])) else "-"]
        for each in reports
        for row in _aims(each)
        if row[4] == "no"
    ]
    if not rows:
        return "None."
    return table([*AIMS_HEADER[:4], "measured / wanted"], rows)


def aims_in_short(reports: Sequence[Report]) -> str:
    """One row per aim: the range over the places where it was measured."""
    wanted: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    for report in reports:
        for row in _aims(report):
            wanted[row[0], row[2]].append(row)
    rows: list[list[str]] = []
    for (name, bound), found in wanted.items():
        measured = sorted((row[3] for row in found), key=_number)
        shown = measured[0] if len(found) == 1 else f"{measured[0]} to {measured[-1]}"
        num_met = sum(row[4] == "yes" for row in found)
        met = ("yes" if num_met else "no") if len(found) == 1 else f"{num_met} of {len(found)}"
        rows.append([name, bound, shown, met])
    return table(["aim", "wanted", "measured", "met"], rows)


def _aims(report: Report) -> list[list[str]]:
    return [row for each in report.tables if each.is_of_aims for row in each.rows]


def _number(text: str) -> float:
    found = re.search(r"[-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?", text)
    return float(found[0].replace(",", "")) if found else 0.0


def fill(page: str, name: str, text: str) -> str:
    """Put ``text`` between the two comments that name its place.

    Raises:
        ValueError: the page has no such place, or more than one.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(opening) != 1 or page.count(closing) != 1:
        raise ValueError(f"the page must have one place from {opening} to {closing}")
    before, rest = page.split(opening)
    _, after = rest.split(closing)
    return f"{before}{opening}\n{text.strip()}\n{closing}{after}"
