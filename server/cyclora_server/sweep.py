"""Deleting what has expired: records of checkpoints first, then their files.

Every server does it, since each reaches storage; doing it twice is doing it once. A server that
dies in between leaves files whose record is gone: the store remembers them, and the next sweep of
any server finds them.
"""

from __future__ import annotations

import asyncio

import structlog

from cyclora_server import access, problems
from cyclora_server.services import Services

MAX_FILES_AT_ONCE = 50
"""Checkpoints whose files are deleted in one sweep, so that it never holds up for long."""

_log = structlog.get_logger()


class Sweeper:
    """Looks for expired checkpoints as long as the server runs."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._services.settings.sweep_interval_s)
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - a process-long loop's boundary
                problems.report_fault(error)

    async def sweep(self) -> None:
        """Drop a bounded number of expired records, and delete files without one."""
        checkpoints = self._services.store.checkpoints
        num_dropped = await checkpoints.drop_expired()
        if num_dropped:
            _log.info("checkpoints expired", num_checkpoints=num_dropped)
        for files in await checkpoints.doomed_files(MAX_FILES_AT_ONCE):
            if not await access.delete_files(self._services, files):
                # Tried again later, behind the others: one folder must not hold up the rest.
                _log.warning("checkpoint not deleted", path=files.path, revision=files.revision)
                await checkpoints.doom_files(files, self._services.settings.sweep_interval_s)
