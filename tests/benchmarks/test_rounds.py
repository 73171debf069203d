"""How the benchmarks compare."""

from __future__ import annotations

from collections import Counter

import pytest
from rounds import Rounds, interleaved


def test_every_way_takes_its_turn_in_every_round() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in "abc"}

    rounds = interleaved(ways, 4, num_warm_ups=2)

    assert all(Counter(calls[i : i + 3]) == Counter("abc") for i in range(0, 18, 3))
    assert {name: len(each) for name, each in rounds.seconds.items()} == dict.fromkeys("abc", 4)


def test_a_speedup_compares_within_rounds() -> None:
    """The machine was ten times as slow in the last two rounds, for both."""
    rounds = Rounds({"ours": [1.0, 1.0, 10.0, 10.0], "theirs": [2.0, 2.0, 20.0, 20.0]})

    assert rounds.speedup("ours", "theirs") == 2.0
    assert rounds.speedup_range("ours", "theirs") == "2.00 (2.00 to 2.00)"


def test_throughput_is_work_over_the_median_time() -> None:
    rounds = Rounds({"ours": [0.5, 0.1, 0.9]})

    assert rounds.per_s("ours", 100) == 200
    assert rounds.spread("ours") == pytest.approx(0.4)
