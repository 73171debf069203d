"""Several ways to do the same work, taking turns, so that all see the same machine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from machine import progress

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of each way, by round."""

    seconds: Mapping[str, Sequence[float]]

    def median_s(self, way: str) -> float:
        return statistics.median(self.seconds[way])

    def per_s(self, way: str, amount: float) -> float:
        """How much of ``amount``, the work of one round, a second does."""
        return amount / self.median_s(way)

    def speedup(self, way: str, over: str) -> float:
        """How many times as fast as another: the median of the ratios within the rounds.

        Within a round both saw about the same machine, so this is steadier than a ratio of medians.
        """
        return statistics.median(self._ratios(way, over))

    def speedup_range(self, way: str, over: str) -> str:
        """The speedup with its quartiles: ``2.51 (2.43 to 2.60)``."""
        ratios = self._ratios(way, over)
        if len(ratios) < 3:
            low, high = min(ratios), max(ratios)
        else:
            low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"

    def spread(self, way: str) -> float:
        """Half the distance of the quartiles over the median: 0.05 is a spread of 5 %."""
        if len(self.seconds[way]) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds[way], n=4, method="inclusive")
        return (high - low) / 2 / self.median_s(way)

    def _ratios(self, way: str, over: str) -> list[float]:
        pairs = zip(self.seconds[over], self.seconds[way], strict=True)
        return [other / mine for other, mine in pairs]


def interleaved(
    ways: Mapping[str, Way], num_rounds: int, description: str = "", *, num_warm_ups: int = 1
) -> Rounds:
    """Measure every way once per round, in another order each round.

    Args:
        ways: Each does the same work once.
        num_rounds: Measured rounds.
        description: Stands beside the progress bar.
        num_warm_ups: Rounds before, which are not counted: memory, caches and compilers settle.
    """
    for _ in range(num_warm_ups):
        for way in ways.values():
            way()
    order, shuffled = list(ways), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in progress(range(num_rounds), description or "measuring"):
        shuffled.shuffle(order)
        for name in order:
            started_mono_s = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - started_mono_s)
    return Rounds(seconds)
