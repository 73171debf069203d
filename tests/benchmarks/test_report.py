"""What benchmarks print is what the pages show."""

from __future__ import annotations

import json

import pytest
from machine import Aim, Plot, aims_table, table
from report import Report, Table, aims, aims_in_short, fill, missed

PRINTED = "\n".join(
    [
        "Trained tokens/s. A machine; `python benchmarks/train.py`.",
        "",
        "tenants \u2501\u2501\u2501\u2501 100% 0:00:01",
        table(
            ["tenants", "ours"],
            [["1", "4,732"], ["16", "-"]],
            Plot("4 x 256", "tenants", ["ours"]),
        ),
        "",
        aims_table([Aim("over peft", "4 x 256", 2.5, 3.0), Aim("over peft", "8 x 512", 2.5, 2.0)]),
    ]
)


def parsed() -> Report:
    return Report.parse("train", 12.0, PRINTED)


def test_a_report_holds_the_paragraphs_and_tables_in_their_order() -> None:
    text, numbers, _ = parsed().parts

    assert text == "Trained tokens/s. A machine; `python benchmarks/train.py`."
    assert numbers == Table(
        ["tenants", "ours"],
        [["1", "4,732"], ["16", "-"]],
        Plot("4 x 256", "tenants", ["ours"], "tokens/s"),
    )


def test_a_report_survives_being_kept() -> None:
    kept = json.dumps(parsed().to_json())

    assert Report.from_json(json.loads(kept)) == parsed()


def test_a_caption_right_above_a_table_is_told_from_it() -> None:
    report = Report.parse("train", 1.0, "caption\n| a |\n| --- |\n| 1 |\nremark")

    assert report.parts == ["caption", Table(["a"], [["1"]]), "remark"]


def test_what_is_no_number_leaves_a_gap_in_a_picture() -> None:
    assert parsed().tables[0].numbers("ours") == [4732.0, None]


def test_the_page_shows_the_aims_of_all_reports_in_one_place() -> None:
    assert "over peft" not in parsed().markdown()
    assert aims([parsed(), parsed()]).count("over peft") == 4


def test_the_page_says_by_how_much_an_aim_was_missed() -> None:
    assert missed([parsed()]).splitlines()[2:] == [
        "| over peft | 8 x 512 | at least 2.5 | 2 | 0.80 |"
    ]
    assert missed([]) == "None."


def test_small_numbers_keep_their_exponents() -> None:
    aim = Aim("difference", "tiny", 1e-5, 1.4e-4, is_bound_above=True)
    report = Report.parse("agreement", 1.0, aims_table([aim]))

    assert missed([report]).splitlines()[-1].endswith("| at most 1e-05 | 0.00014 | 14.00 |")


def test_the_short_form_gives_the_range_and_how_often_an_aim_was_met() -> None:
    assert aims_in_short([parsed()]).splitlines()[-1] == (
        "| over peft | at least 2.5 | 2 to 3 | 1 of 2 |"
    )


def test_an_aim_that_bounds_from_above_is_missed_above_it() -> None:
    aim = Aim("a lone tiny step", "tiny", 20, 21.5, is_bound_above=True, unit=" ms")

    assert aim.row() == ["a lone tiny step", "tiny", "at most 20 ms", "21.5 ms", "no"]


def test_a_page_keeps_what_stands_around_a_place() -> None:
    page = "before\n<!-- train -->\nold\n<!-- /train -->\nafter\n"

    filled = fill(page, "train", "new\n")

    assert filled == "before\n<!-- train -->\nnew\n<!-- /train -->\nafter\n"
    assert fill(filled, "train", "new") == filled


def test_a_page_without_the_place_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- sample -->"):
        fill("<!-- train -->\n<!-- /train -->", "sample", "new")
