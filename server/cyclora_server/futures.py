"""Waiting for futures: one subscription for all polls of this process.

A poll registers its bell first, then reads the state, then waits. In any other order a future that
becomes final between the read and the wait would be announced to nobody, and its poll would be
held to the end for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from cyclora_core.partials import Progress
from cyclora_core.records import Completion, Future, FutureState
from cyclora_server import problems
from cyclora_server.ports import FuturesPort

CLONE_STRIDE = 1_000_000_000
"""The SDK numbers the samples of a clone of a sampling client from clone_id times this."""

_RESUBSCRIBE_PAUSE_S = 0.5


class _Bell(asyncio.Event):
    """What one poll waits for."""

    announced_s = 0.0
    """When it was last rung for its own future, by the event loop's clock; 0 if never."""


class FuturesHub:
    """Local waiters for futures that other processes settle."""

    def __init__(self, futures: FuturesPort, woken: Callable[[float], None] | None = None) -> None:
        """Start with nobody waiting.

        Args:
            futures: where they are.
            woken: told, for each poll that got what it waited for, the seconds since the news came.
        """
        self._futures = futures
        self._woken = woken
        self._bells: dict[str, set[_Bell]] = {}
        self._num_waiting = 0
        self._is_closing = False

    async def run(self) -> None:
        """Announce what the store announces, until cancelled; subscribes again after a failure."""
        while True:
            try:
                async with self._futures.subscribe() as announcements:
                    self._ring_all()
                    async for request_id in announcements:
                        self._announce(request_id)
            except Exception as error:  # noqa: BLE001 - a process-long loop's boundary
                problems.report_fault(error)
            await asyncio.sleep(_RESUBSCRIBE_PAUSE_S)

    def close(self) -> None:
        """Answer every held poll now, and hold none from here on."""
        self._is_closing = True
        self._ring_all()

    async def wait(self, request_id: str, tenant_id: str, hold_s: float) -> Future | None:
        """The future once it is final, or as it stands after ``hold_s``.

        None when there is no such future, or it is another tenant's: a stranger learns nothing and
        waits for nothing.
        """
        deadline = asyncio.get_running_loop().time() + hold_s
        with self._bell(request_id) as bell:
            while True:
                bell.clear()
                future = await self._futures.get(request_id)
                if future is None or future.tenant_id != tenant_id:
                    return None
                if future.state is not FutureState.PENDING:
                    if self._woken is not None and bell.announced_s:
                        self._woken(asyncio.get_running_loop().time() - bell.announced_s)
                    return future
                if not await self._rings(bell, deadline):
                    return future

    async def wait_completions(
        self, sampling_session_id: str, clone_id: int, prev_cursor: int, hold_s: float
    ) -> list[Completion]:
        """Samples that became final after a cursor; none if there is none after ``hold_s``."""
        deadline = asyncio.get_running_loop().time() + hold_s
        with self._bell(_group(sampling_session_id, clone_id)) as bell:
            while True:
                bell.clear()
                found = await self._futures.completions(sampling_session_id, clone_id, prev_cursor)
                if found or not await self._rings(bell, deadline):
                    return found

    async def wait_progress(self, request_id: str, num_seen: int, hold_s: float) -> Progress:
        """What a streamed sample got after ``num_seen`` tokens; nothing, if so after ``hold_s``."""
        deadline = asyncio.get_running_loop().time() + hold_s
        with self._bell(request_id) as bell:
            while True:
                bell.clear()
                progress = await self._futures.progress(request_id, num_seen)
                if progress.tokens or progress.is_final or not await self._rings(bell, deadline):
                    return progress

    @property
    def is_closing(self) -> bool:
        """Whether nothing is waited for any more."""
        return self._is_closing

    @property
    def num_waiting(self) -> int:
        """Polls that are being held; may be asked for in any thread."""
        return self._num_waiting

    @property
    def is_subscribed(self) -> bool:
        """Whether announcements arrive."""
        return self._futures.is_subscribed

    async def _rings(self, bell: asyncio.Event, deadline: float) -> bool:
        if self._is_closing:
            return False
        try:
            async with asyncio.timeout_at(deadline):
                await bell.wait()
        except TimeoutError:
            return False
        return True

    @contextmanager
    def _bell(self, name: str) -> Generator[_Bell, None, None]:
        """A bell of one's own: a waiter that gives up takes nothing from the others."""
        bell = _Bell()
        self._bells.setdefault(name, set()).add(bell)
        self._num_waiting += 1
        try:
            yield bell
        finally:
            self._num_waiting -= 1
            self._bells[name].discard(bell)
            if not self._bells[name]:
                del self._bells[name]

    def _announce(self, request_id: str) -> None:
        if not request_id:
            self._ring_all()
            return
        names = [request_id]
        owner_id, _, seq_id = request_id.rpartition(":")
        if seq_id.isdecimal():
            names.append(_group(owner_id, int(seq_id) // CLONE_STRIDE))
        now_s = asyncio.get_running_loop().time()
        for name in names:
            for bell in self._bells.get(name, ()):
                bell.announced_s = now_s
                bell.set()

    def _ring_all(self) -> None:
        for bells in self._bells.values():
            for bell in bells:
                bell.set()


def _group(sampling_session_id: str, clone_id: int) -> str:
    return f"{sampling_session_id}#{clone_id}"
