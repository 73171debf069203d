"""The pages that ``benchmarks/run.py`` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run
from report import Report, fill

ROOT = Path(run.__file__).parents[1]


@pytest.mark.parametrize("name", [*run.BENCHMARKS, "aims", "missed"])
def test_the_page_has_a_place_for_every_benchmark(name: str) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()

    assert "new" in fill(page, name, "new")


def test_the_page_and_readme_show_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever changes a number by hand, or forgets to render, is told."""
    pytest.importorskip("matplotlib")
    kept = tmp_path / "docs" / "performance"
    kept.mkdir(parents=True)
    for path in (ROOT / "docs" / "performance").glob("*.json"):
        (kept / path.name).write_text(path.read_text())
    pages = ["docs/performance.md", "README.md"]
    for page in pages:
        (tmp_path / page).write_text((ROOT / page).read_text())

    run.render(tmp_path)

    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()


def test_what_a_run_printed_is_kept_as_data(tmp_path: Path) -> None:
    report = Report("train", 3.0, ["a caption"])

    run.write(report, tmp_path)

    kept = json.loads((tmp_path / "docs" / "performance" / "train.json").read_text())
    assert Report.from_json(kept) == report
