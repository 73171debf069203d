from __future__ import annotations

import math

import pytest

from cyclora_workers.metric_terms import joined, reduced


def test_a_pass_without_terms_still_reports_its_loss() -> None:
    assert reduced({}) == {"loss:sum": 0.0}


def test_sums_add_and_means_divide_by_the_number_of_terms() -> None:
    terms = {"loss:sum": [1.0, 2.0], "custom/a:mean": [1.0, 2.0, 6.0], "custom/b:sum": [4.0]}

    assert reduced(terms) == {"loss:sum": 3.0, "custom/a:mean": 3.0, "custom/b:sum": 4.0}


def test_grouping_changes_no_bit() -> None:
    values = [1e16, 1.0, -1e16, 0.1, 0.2, 0.3]
    whole = reduced({"loss:sum": values})

    for cut in range(len(values)):
        parts = joined({"loss:sum": values[:cut]}, {"loss:sum": values[cut:]})
        assert reduced(parts) == whole


def test_a_metric_may_begin_in_a_later_part() -> None:
    assert joined({}, {"a:sum": [1.0]}) == joined({"a:sum": [1.0]}, {}) == {"a:sum": [1.0]}


@pytest.mark.parametrize("values", [[math.inf, -math.inf], [1e308, 1e308], [math.nan]])
def test_what_has_no_finite_sum_is_not_a_number_rather_than_a_fault(values: list[float]) -> None:
    assert math.isnan(reduced({"loss:sum": values})["loss:sum"])
