"""When a child process that died is started again."""

from __future__ import annotations

from dataclasses import dataclass

from cyclora_core.clock import Clock
from cyclora_core.environment import EXIT_CONFIGURATION

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0
STABLE_AFTER_S = 30.0
"""A child that was ready for this long starts again from the shortest delay."""

MAX_DEATHS_BEFORE_READY = 5


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the child again after this delay."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Starting the child again is pointless."""

    reason: str


class RestartPolicy:
    """The decision for one child; told what happened, it knows no processes and does not wait.

    ::

        delay after the n-th death in a row = min(0.2 s * 2**(n-1), 5 s)

    A child that was never ready is given up at its fifth death, however long each attempt took:
    loading a large model takes longer than any window of time one could choose here. A child
    that was ready once is restarted for as long as ``up`` runs.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._num_deaths = 0
        self._was_ever_ready = False
        self._ready_mono_s: float | None = None

    def became_ready(self) -> None:
        self._was_ever_ready = True
        self._ready_mono_s = self._clock.mono_s()

    def died(self, exit_code: int) -> Restart | GiveUp:
        """Decide after a death; ``exit_code`` is negative for a signal."""
        if not self._was_ever_ready and exit_code == EXIT_CONFIGURATION:
            return GiveUp("cannot run with these settings")
        if self._ready_mono_s is not None:
            if self._clock.mono_s() - self._ready_mono_s >= STABLE_AFTER_S:
                self._num_deaths = 0
            self._ready_mono_s = None
        self._num_deaths += 1
        if not self._was_ever_ready and self._num_deaths >= MAX_DEATHS_BEFORE_READY:
            return GiveUp(f"died {self._num_deaths} times before it was ready")
        doublings = min(self._num_deaths - 1, 16)
        return Restart(min(FIRST_DELAY_S * 2**doublings, MAX_DELAY_S))
