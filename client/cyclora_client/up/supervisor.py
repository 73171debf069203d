"""Keeps child processes running, and stops them in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn, Protocol

from cyclora_client.up.children import Child, ProcessSpec
from cyclora_client.up.errors import ChildFailedError
from cyclora_client.up.probes import Report
from cyclora_client.up.restart import GiveUp, RestartPolicy
from cyclora_core.clock import Clock, SystemClock
from cyclora_core.errors import CycloraError

_PROBE_INTERVAL_S = 0.05


class Observer(Protocol):
    """Who is told what happens to the children."""

    def progress(self, name: str, report: Report) -> None:
        """A child said something new about its start."""
        ...

    def notice(self, text: str) -> None:
        """Something happened that a person should know."""
        ...


class Supervisor:
    """Children that are restarted when they die, until ``stop``.

    Cancelling a task that waits here stops no child; only ``stop`` and ``kill`` do.
    """

    def __init__(self, observer: Observer, clock: Clock | None = None) -> None:
        self._observer = observer
        self._clock = clock or SystemClock()
        self._tasks: dict[Child, asyncio.Task[None]] = {}
        self._failed = asyncio.Event()
        self._failure: Exception | None = None

    def start(self, spec: ProcessSpec) -> Child:
        child = Child(spec, RestartPolicy(self._clock))
        self._tasks[child] = asyncio.create_task(self._keep(child), name=spec.name)
        return child

    async def until_failure(self) -> NoReturn:
        """Wait until a child is given up, then raise.

        Raises:
            ChildFailedError: with the end of the child's log.
        """
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def stop(self, children: Iterable[Child], timeout_s: float) -> None:
        """SIGTERM to all, in the order given; SIGKILL to those that have not ended in time."""
        tasks: list[asyncio.Task[None]] = []
        for child in children:
            child.stop_asked.set()
            child.terminate()
            tasks.append(self._tasks[child])
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for child, task in self._tasks.items():
            if task in late:
                self._observer.notice(f"{child.spec.name} did not stop within {timeout_s:g} s")
                child.kill()
        if late:
            await asyncio.wait(late)

    def kill(self) -> None:
        """SIGKILL to every child, now."""
        for child in self._tasks:
            child.stop_asked.set()
            child.kill()

    async def _keep(self, child: Child) -> None:
        """Run one child again and again until it is told to stop or given up."""
        try:
            while not child.stop_asked.is_set():
                exit_code = await self._run_once(child)
                if child.stop_asked.is_set():
                    return
                decision = child.policy.died(exit_code)
                how = _describe(exit_code)
                if isinstance(decision, GiveUp):
                    reason = f"{decision.reason} ({how})"
                    raise ChildFailedError(child.spec.name, reason, child.log_tail())
                self._observer.notice(
                    f"{child.spec.name} ended ({how}); starting it again in {decision.delay_s:g} s"
                )
                await _wait(child.stop_asked, decision.delay_s)
        except (CycloraError, OSError) as error:
            self._failure = self._failure or error
            self._failed.set()

    async def _run_once(self, child: Child) -> int:
        watch = asyncio.create_task(self._watch(child))
        try:
            return await child.run_once()
        finally:
            watch.cancel()
            await asyncio.wait([watch])
            child.ready.clear()

    async def _watch(self, child: Child) -> None:
        """Pass on what a starting child says, until it is ready."""
        while True:
            report = child.read_report()
            if report is not None and report != child.report:
                child.report = report
                self._observer.progress(child.spec.name, report)
                if report.is_ready:
                    child.policy.became_ready()
                    child.ready.set()
                    return
            await asyncio.sleep(_PROBE_INTERVAL_S)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


def _describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
