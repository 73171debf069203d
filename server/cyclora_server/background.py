"""Work that outlives the request it belongs to: small, and no loss when the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cyclora_server import problems


class Background:
    """Tasks of this process that nobody awaits; their failures are logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this beside everything else, also when the one who asks is being cancelled."""
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout_s: float) -> None:
        """Wait until nothing is left, or cancel what is left after so long: it is no loss."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - the boundary of this piece of work
            problems.report_fault(error)
