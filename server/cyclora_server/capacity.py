"""Refusing new work while there is still room to finish what was accepted.

A store without memory or a disk without space would fail whatever comes next, which may be the
result of hours of training. So new work is refused before, with a 429 that the SDK takes as
back-pressure: it comes back for up to five minutes. Polls, deletions, heartbeats and the end of a
model or session go on: they are what makes room.

A refused request has used nothing up, its seq_id included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog

from cyclora_core.clock import Clock, SystemClock
from cyclora_core.errors import Overloaded
from cyclora_core.store.memory import MemoryReading
from cyclora_server import problems
from cyclora_server.ports import MemoryPort
from cyclora_server.settings import Settings

_MEASURE_INTERVAL_S = 1.0

_FRESH_S = 5.0
"""Readings older than this say that store or disk do not answer."""

_BYTES_PER_REQUEST = 4096
"""What the store keeps of a request besides its body: future, log entry, keys."""

_log = structlog.get_logger()


class StoreMemoryLow(Overloaded):
    """The store has memory left only to finish what it accepted."""


class DiskLow(Overloaded):
    """The disk of checkpoints has little space left."""


class Resource(StrEnum):
    """What can run out."""

    STORE_MEMORY = "store memory"
    DISK = "disk"


_REFUSALS = {Resource.STORE_MEMORY: StoreMemoryLow, Resource.DISK: DiskLow}


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is low, in words for whoever is refused."""

    resource: Resource
    message: str


def find_shortage(
    memory: MemoryReading,
    free_disk_bytes: int,
    settings: Settings,
    new_bytes: int = 0,
    *,
    is_awaited: bool = False,
) -> Shortage | None:
    """Why a request must be refused; None when there is room for it.

    ``is_awaited`` says that accepted requests cannot run before this one. It may use half of what
    is kept free of the store, and the disk: to refuse it would keep the others there for ever.

    Units:
        ``new_bytes``: what the store has taken since it was measured, and would take now.
    """
    fraction = settings.max_store_memory_fraction
    allowed = (1 + fraction) / 2 if is_awaited else fraction
    used_bytes = memory.used_bytes + new_bytes
    if used_bytes > allowed * memory.limit_bytes:
        full = used_bytes / memory.limit_bytes
        return Shortage(
            Resource.STORE_MEMORY,
            f"the store's memory would be {full:.0%} full with this request ({_size(used_bytes)} "
            f"of {_size(memory.limit_bytes)}); new work is accepted up to {fraction:.0%}, and what "
            "was accepted goes on: try again when some of it has finished",
        )
    if free_disk_bytes < settings.min_free_disk_bytes and not is_awaited:
        return Shortage(
            Resource.DISK,
            f"the disk for checkpoints has {_size(free_disk_bytes)} left; new work is accepted "
            f"from {_size(settings.min_free_disk_bytes)} on, and what was accepted goes on: try "
            "again when checkpoints have been deleted or the disk has grown",
        )
    return None


def footprint(num_body_bytes: int) -> int:
    """Bytes the store takes for a request, estimated high until it is measured again.

    While a request is on its way in, the store holds it twice for a moment, and its allocator
    rounds up by as much as a quarter.
    """
    return num_body_bytes + num_body_bytes // 2 + _BYTES_PER_REQUEST


class Capacity:
    """The room there is, measured every second and counted down in between.

    Each process counts only what it lets in itself; what several let in within one second is
    covered by the part of the store that is kept free.
    """

    def __init__(
        self,
        settings: Settings,
        memory: MemoryPort,
        free_disk_bytes: Callable[[], int],
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._measured_mono_s: float | None = None
        self._store_memory = memory
        self._measure_disk = free_disk_bytes
        self._measuring = asyncio.Lock()
        self._memory: MemoryReading | None = None
        self._free_disk_bytes = 0
        self._storing_bytes = 0
        self._stored_bytes = 0
        """Since the reading began."""
        self._known: Shortage | None = None

    async def run(self) -> None:
        """Measure again and again, until cancelled."""
        while True:
            await asyncio.sleep(_MEASURE_INTERVAL_S)
            await self.measure()

    async def measure(self) -> None:
        """Look anew. After a failure the last reading stands and new work counts on top of it."""
        async with self._measuring:
            counted_bytes = self._stored_bytes
            try:
                memory = await self._store_memory.read()
                free_disk_bytes = await asyncio.to_thread(self._measure_disk)
            except Exception as error:  # noqa: BLE001 - a process-long loop's boundary
                problems.report_fault(error)
                return
            self._memory, self._free_disk_bytes = memory, free_disk_bytes
            self._measured_mono_s = self._clock.mono_s()
            self._stored_bytes -= counted_bytes
            self._tell(find_shortage(memory, free_disk_bytes, self._settings))

    def check(self, *, is_awaited: bool = False) -> None:
        """Refuse now what would be refused anyway, before work is spent on its body.

        Raises:
            Overloaded: no request is accepted at the moment.
        """
        self._refuse_without_room(0, is_awaited)

    @contextmanager
    def admitted(
        self, num_body_bytes: int, *, is_awaited: bool = False
    ) -> Generator[None, None, None]:
        """Hold room for a request while it is stored.

        Raises:
            Overloaded: there is none.
        """
        num_bytes = footprint(num_body_bytes)
        self._refuse_without_room(num_bytes, is_awaited)
        self._storing_bytes += num_bytes
        try:
            yield
        finally:
            # Also after an error: whether it was stored is then not known.
            self._storing_bytes -= num_bytes
            self._stored_bytes += num_bytes

    @property
    def memory(self) -> MemoryReading | None:
        """The store's memory as last measured."""
        return self._memory

    @property
    def free_disk_bytes(self) -> int:
        """As last measured."""
        return self._free_disk_bytes

    @property
    def shortage(self) -> Shortage | None:
        """What was low when it was last measured."""
        return self._known

    @property
    def is_fresh(self) -> bool:
        """Whether store and disk have answered lately."""
        measured_s = self._measured_mono_s
        return measured_s is not None and self._clock.mono_s() - measured_s <= _FRESH_S

    def describe(self) -> dict[str, Any]:
        """What administrators see."""
        memory = self._memory
        return {
            "store_used_bytes": memory.used_bytes if memory else None,
            "store_limit_bytes": memory.limit_bytes if memory else None,
            "max_store_memory_fraction": self._settings.max_store_memory_fraction,
            "free_disk_bytes": self._free_disk_bytes if memory else None,
            "min_free_disk_bytes": self._settings.min_free_disk_bytes,
            "shortage": self._known.message if self._known else None,
        }

    def _refuse_without_room(self, num_bytes: int, is_awaited: bool) -> None:
        if self._memory is None:
            return
        new_bytes = self._stored_bytes + self._storing_bytes + num_bytes
        shortage = find_shortage(
            self._memory, self._free_disk_bytes, self._settings, new_bytes, is_awaited=is_awaited
        )
        if shortage is not None:
            raise _REFUSALS[shortage.resource](shortage.message)

    def _tell(self, shortage: Shortage | None) -> None:
        before = self._known.resource if self._known else None
        self._known = shortage
        if (shortage.resource if shortage else None) == before:
            return
        if shortage is None:
            _log.info("new work accepted again")
        else:
            _log.warning("new work refused", resource=shortage.resource, reason=shortage.message)


def _size(num_bytes: int) -> str:
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
