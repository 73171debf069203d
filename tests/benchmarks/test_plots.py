"""Pictures of reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine import Plot
from plots import draw
from report import Report, Table

pytest.importorskip("matplotlib")

ROWS = [["1", "4,732", "n/a"], ["16", "-", "2"]]


def test_the_same_numbers_give_the_same_picture(tmp_path: Path) -> None:
    table = Table(["tenants", "ours", "theirs"], ROWS, Plot("a", "tenants", ["ours", "theirs"]))
    report = Report("train", 1.0, [table, table])

    assert draw(report, tmp_path / "one.svg")
    assert draw(report, tmp_path / "other.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_a_report_with_nothing_to_draw_has_no_picture(tmp_path: Path) -> None:
    assert not draw(Report("train", 1.0, [Table(["a"], [["1"]])]), tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
