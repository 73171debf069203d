"""Pictures of a report's tables: one panel per table that says what of it is to be drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from report import Report, Table

_PANELS_PER_ROW = 3
_PANEL_INCHES = (3.6, 2.8)


def draw(report: Report, path: Path) -> bool:
    """Write an SVG; False where nothing is to be drawn."""
    drawn = [table for table in report.tables if table.plot is not None and table.rows]
    if not drawn:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    # The same numbers give the same file.
    mpl.rcParams["svg.hashsalt"] = report.name
    from matplotlib import pyplot

    num_columns = min(len(drawn), _PANELS_PER_ROW)
    num_rows = math.ceil(len(drawn) / num_columns)
    size = (_PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * num_rows)
    figure, panels = pyplot.subplots(
        num_rows, num_columns, figsize=size, squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(drawn) :]:
        panel.set_visible(False)
    for panel, table in zip(panels.flat, drawn, strict=False):
        _draw_panel(panel, table)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _draw_panel(panel: Any, table: Table) -> None:
    plot = table.plot
    assert plot is not None
    index = table.header.index(plot.x)
    labels = [row[index] for row in table.rows]
    for column in plot.y:
        points = [
            (place, number)
            for place, number in enumerate(table.numbers(column))
            if number is not None
        ]
        panel.plot([p for p, _ in points], [n for _, n in points], marker="o", label=column)
    panel.set_xticks(range(len(labels)), labels)
    panel.set_ylim(bottom=0)
    panel.set_title(plot.title, fontsize=9)
    panel.set_xlabel(plot.x, fontsize=8)
    panel.set_ylabel(plot.unit, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)
