"""Whether a process is alive and whether it can do its work, by what it knows without asking.

Alive is whoever's own loop goes on: a process that is not should be started anew. Ready is whoever
could take work now; a store that is away makes nobody dead, or all would be started over and over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cyclora_core.clock import Clock
from cyclora_core.metrics import Instruments

_BEAT_INTERVAL_S = 1.0

MAX_SILENCE_S = 15.0
"""Seconds that a loop may stand still before its process counts as dead: longer than anything it
does by itself, and than a busy machine makes it wait."""

Check = Callable[[], bool]
"""Must be right in any thread, and not block."""


class Health:
    """What a process knows of its own condition; asked for in any thread."""

    def __init__(self, clock: Clock, instruments: Instruments) -> None:
        self._clock = clock
        self._beat_mono_s: float | None = None
        self._live: dict[str, Check] = {"loop": self._is_loop_moving}
        self._ready: dict[str, Check] = {"serving": lambda: self.is_serving}
        self.is_serving = False
        """Whether the process has started and has not been told to stop."""
        self._delay_s = instruments.histogram(
            "loop_delay_seconds",
            "Seconds by which the process's event loop was late, every second.",
        )
        instruments.read_gauge(
            "is_alive", "1 as long as the process's own loop goes on.", lambda: not self.not_alive()
        )
        instruments.read_gauge(
            "is_ready", "1 as long as the process could take work.", lambda: not self.not_ready()
        )

    def live_if(self, name: str, check: Check) -> None:
        """Call the process dead as soon as this does not hold."""
        self._live[name] = check

    def ready_if(self, name: str, check: Check) -> None:
        """Call the process ready only while this holds."""
        self._ready[name] = check

    def not_alive(self) -> list[str]:
        """Names of what says that the process hangs; none when it is alive."""
        return [name for name, check in self._live.items() if not check()]

    def not_ready(self) -> list[str]:
        """Names of what keeps the process from working; none when it is ready."""
        return [n for n, check in (self._live | self._ready).items() if not check()]

    def beat(self) -> None:
        """Say that the process's loop goes on."""
        self._beat_mono_s = self._clock.mono_s()

    async def keep_beating(self) -> None:
        """Beat as long as the event loop turns, and note how late it turns."""
        while True:
            self.beat()
            began_mono_s = self._clock.mono_s()
            await asyncio.sleep(_BEAT_INTERVAL_S)
            late_s = self._clock.mono_s() - began_mono_s - _BEAT_INTERVAL_S
            self._delay_s.observe(max(0.0, late_s))

    def _is_loop_moving(self) -> bool:
        beat_mono_s = self._beat_mono_s
        # Before the first one the process loads, for as long as its disk takes.
        return beat_mono_s is None or self._clock.mono_s() - beat_mono_s <= MAX_SILENCE_S
