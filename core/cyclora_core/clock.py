"""Time as a parameter, so that loops can be tested without waiting."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a process asks about time."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        ...

    def mono_s(self) -> float:
        """Seconds on a clock that never jumps; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def mono_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._mono_ms = 0

    def now_ms(self) -> int:
        return self._now_ms

    def mono_s(self) -> float:
        return self._mono_ms / 1000

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ms += round(seconds * 1000)
        self._mono_ms += round(seconds * 1000)

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, as an administrator or NTP does; no time passes."""
        self._now_ms += round(seconds * 1000)


def as_datetime(instant_ms: int) -> datetime:
    """The aware UTC instant of a number of milliseconds since the epoch."""
    return datetime.fromtimestamp(instant_ms / 1000, UTC)
