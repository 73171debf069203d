"""Targets of shared rows, side by side and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cyclora_workers.prefix_tree import PrefixTree
from cyclora_workers.target_rows import target_rows, to_data_order

CPU = torch.device("cpu")


def group() -> PrefixTree:
    """Three data of 5, 4 and 6 tokens; the first 3 of them are the same."""
    return PrefixTree([np.arange(size) for size in (5, 4, 6)], [0, 3, 3])


def test_a_shared_row_has_the_targets_of_all_data() -> None:
    prompt, own = target_rows(group(), 512, CPU)

    assert (prompt.start, prompt.stop, own.start, own.stop) == (0, 3, 3, 9)
    assert prompt.places_RC.tolist() == [[0, 5, 9], [1, 6, 10], [2, 7, 11]]
    assert own.places_RC.flatten().tolist() == [3, 4, 8, 12, 13, 14]


def test_top_k_targets_of_several_data_lie_side_by_side() -> None:
    prompt = target_rows(group(), 512, CPU)[0]
    values_NK = torch.arange(30).view(15, 2)

    assert prompt.of(values_NK)[0].tolist() == [0, 1, 10, 11, 18, 19]


@pytest.mark.parametrize("max_rows", [1, 2, 512])
@pytest.mark.parametrize("width", [1, 3])
def test_back_in_the_order_of_the_data(max_rows: int, width: int) -> None:
    values_NK = torch.randn(15, width)
    rows = target_rows(group(), max_rows, CPU)

    assert torch.equal(to_data_order(rows, [run.of(values_NK) for run in rows]), values_NK)
    assert [run.start for run in rows[1:]] == [run.stop for run in rows[:-1]]
    assert max(run.stop - run.start for run in rows) <= max_rows


def test_without_prefixes_rows_are_the_tokens() -> None:
    (only,) = target_rows(PrefixTree([np.arange(5), np.arange(4)]), 512, CPU)

    assert only.places_RC.tolist() == [[place] for place in range(9)]
