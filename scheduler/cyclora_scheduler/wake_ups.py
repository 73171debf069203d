"""Wake-ups from the store, waited for to the millisecond.

Redis looks at the timeouts of blocked clients when anything else happens, or ten times a second: of
an idle store, a wait of 1 ms takes up to 100. So one long wait stays open there, and how long we
wait for it is measured here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class WakeUps:
    """One wait at the store at a time, which outlasts the shorter ones of this process."""

    def __init__(self, wait_at_store: Callable[[float], Awaitable[None]], longest_s: float) -> None:
        """Begin with nothing waited for.

        Args:
            wait_at_store: returns when there is work, or after so many seconds.
            longest_s: how long it is asked to wait.
        """
        self._wait_at_store = wait_at_store
        self._longest_s = longest_s
        self._waiting: asyncio.Task[None] | None = None

    async def wait(self, wait_s: float) -> None:
        """Return when there is work, or after ``wait_s``.

        What woke nobody, because it came between two waits, ends the next one at once.
        """
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._at_store())
        waiting = self._waiting
        await asyncio.wait({waiting}, timeout=wait_s)
        if waiting.done():
            self._waiting = None
            waiting.result()

    async def end(self) -> None:
        """Let the wait at the store end by itself: cancelled, it might take a wake-up with it."""
        if self._waiting is not None:
            await self.wait(self._longest_s)

    async def _at_store(self) -> None:
        await self._wait_at_store(self._longest_s)
