"""Where the time of one clock cycle goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum


class Phase(StrEnum):
    """What a worker does in a cycle."""

    ADMIT = "admit"
    """Samples: bodies fetched, weights read, handed to the sampler."""
    LOAD = "load"
    """Models: bodies fetched, states restored from snapshot and log."""
    PASSES = "passes"
    """Forward and backward of all models."""
    DECODE = "decode"
    """Decode steps between microbatches, and settling what finished with them."""
    STEPS = "steps"
    """Optimizer steps, and models created or unloaded."""
    SAVES = "saves"
    """Checkpoints written, handed over and loaded."""
    SETTLE = "settle"
    """Outcomes brought to the store."""
    SNAPSHOTS = "snapshots"
    """Snapshots begun, and states evicted."""


class Phases:
    """Seconds by phase; of phases within one another, each moment counts for the inner one."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._current: Phase | None = None
        self._since_s = self._began_s = now_s()
        self.seconds: dict[Phase, float] = {}

    @contextmanager
    def of(self, phase: Phase) -> Generator[None]:
        """Count what happens meanwhile for a phase."""
        outer = self._current
        self._go_to(phase)
        try:
            yield
        finally:
            self._go_to(outer)

    @property
    def total_s(self) -> float:
        """Since the beginning, what belongs to no phase included."""
        return self._now_s() - self._began_s

    def _go_to(self, phase: Phase | None) -> None:
        now_s = self._now_s()
        if self._current is not None:
            spent_s = self.seconds.get(self._current, 0.0) + now_s - self._since_s
            self.seconds[self._current] = spent_s
        self._current, self._since_s = phase, now_s
