"""A soak as a table, as a plot in characters, and as a picture where matplotlib is installed."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from faults.churn_watch import KeyGroup, Observation, columns

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 60


def table(observations: Sequence[Observation]) -> str:
    """One line per observation."""
    rows = [columns(each) for each in observations]
    lines = ["  ".join(f"{name:>12}" for name in rows[0])]
    lines += ["  ".join(f"{value:>12.6g}" for value in row.values()) for row in rows]
    return "\n".join(lines)


def text_plot(observations: Sequence[Observation]) -> str:
    """A line of bars per column, from its smallest to its largest value."""
    rows = [columns(each) for each in observations]
    return "\n".join(
        f"{name:>14} {bars([row[name] for row in rows])} "
        f"{min(row[name] for row in rows):g} to {max(row[name] for row in rows):g}"
        for name in rows[0]
    )


def bars(values: Sequence[float]) -> str:
    """Values as characters; runs of them are averaged where there are too many for a line."""
    per_bar = -(-len(values) // _MAX_BARS)
    means = [
        statistics.fmean(values[start : start + per_bar])
        for start in range(0, len(values), per_bar)
    ]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def key_table(before: Mapping[str, KeyGroup], after: Mapping[str, KeyGroup], num_runs: int) -> str:
    """How keys grew over a number of runs, by pattern, the largest growth first."""
    nothing = KeyGroup(0, 0)

    def growth(pattern: str) -> int:
        return after[pattern].num_bytes - before.get(pattern, nothing).num_bytes

    lines = [f"{'bytes/run':>10} {'keys/run':>9} {'keys':>7} {'bytes':>9}  pattern"]
    for pattern in sorted(after, key=growth, reverse=True):
        group, old = after[pattern], before.get(pattern, nothing)
        lines.append(
            f"{growth(pattern) / num_runs:>10.1f} {(group.count - old.count) / num_runs:>9.2f} "
            f"{group.count:>7} {group.num_bytes:>9}  {pattern}"
        )
    return "\n".join(lines)


def save_plot(observations: Sequence[Observation], path: Path) -> bool:
    """Write a picture of every column over the runs; false without matplotlib."""
    if util.find_spec("matplotlib") is None:
        return False
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    rows = [columns(each) for each in observations]
    names = [name for name in rows[0] if name != "runs"]
    figure, axes = pyplot.subplots(len(names), sharex=True, figsize=(8, 1.6 * len(names)))
    for axis, name in zip(axes, names, strict=True):
        axis.plot([row["runs"] for row in rows], [row[name] for row in rows], marker=".")
        axis.set_ylabel(name, rotation=0, ha="right")
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("training runs that have ended")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return True
