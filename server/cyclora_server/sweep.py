"""Ending what has expired: checkpoints with their files, and sessions whose client is gone.

Every server does it, since each reaches store and storage; doing it twice is doing it once. A
server that dies in between leaves files whose record is gone, or a session that has ended and still
has models: the store remembers both, and the next sweep of any server finds them.
"""

from __future__ import annotations

import asyncio

import structlog

from cyclora_core.errors import CycloraError
from cyclora_server import access, problems, session_end, tenant_end
from cyclora_server.services import Services
from cyclora_server.session_watch import SessionWatch

MAX_FILES_AT_ONCE = 50
"""Checkpoints whose files are deleted in one sweep, so that it never holds up for long."""

MAX_SESSIONS_AT_ONCE = 50
"""Sessions that are cleaned up behind in one sweep."""

MAX_RUNS_AT_ONCE = 100
"""Runs of a tenant that one sweep looks at; the next goes on behind them."""

HEAD_START_S = 10.0
"""Seconds that whoever ended a session gets to clean up before a sweep does it too."""

PURGE_AFTER_S = 3600
"""Seconds for which a deleted tenant is looked after: an upload may have been on its way."""

_BLIND_SLACK_S = 10.0

_log = structlog.get_logger()


class Sweeper:
    """Looks for what has expired as long as the server runs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        settings = services.settings
        max_blind_s = 2 * settings.sweep_interval_s + _BLIND_SLACK_S
        self._num_runs_kept: dict[str, int] = {}
        self._watch = SessionWatch(settings.session_timeout_s, max_blind_s)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._services.settings.sweep_interval_s)
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - a process-long loop's boundary
                problems.report_fault(error)

    async def sweep(self) -> None:
        """Do a bounded amount of each."""
        await self._expire_checkpoints()
        await self._expire_sessions()
        await self._clean_up_sessions()
        await self._purge_tenants()
        await self._forget_runs()

    async def _expire_checkpoints(self) -> None:
        checkpoints = self._services.store.checkpoints
        num_dropped = await checkpoints.drop_expired()
        if num_dropped:
            _log.info("checkpoints expired", num_checkpoints=num_dropped)
        for files in await checkpoints.doomed_files(MAX_FILES_AT_ONCE):
            if not await access.delete_files(self._services, files):
                # Tried again later, behind the others: one folder must not hold up the rest.
                _log.warning("checkpoint not deleted", path=files.path, revision=files.revision)
                await checkpoints.doom_files(files, self._services.settings.sweep_interval_s)

    async def _expire_sessions(self) -> None:
        sessions = self._services.store.sessions
        live = await sessions.live()
        overdue = self._watch.look(live, self._services.clock.mono_s())
        timeout_s = self._services.settings.session_timeout_s
        detail = f"nothing was heard of its client for {timeout_s:g} s"
        for session_id in overdue:
            if await sessions.expire(session_id, live[session_id], detail):
                _log.info("session expired", session_id=session_id)

    async def _clean_up_sessions(self) -> None:
        sessions = self._services.store.sessions
        for session_id in await sessions.ending(HEAD_START_S, MAX_SESSIONS_AT_ONCE):
            # Behind the others from now on: one that fails must not hold up the rest.
            await sessions.postpone(session_id)
            try:
                await session_end.clean_up(self._services, session_id)
            except CycloraError as error:
                _log.warning("session not cleaned up", session_id=session_id, reason=str(error))

    async def _purge_tenants(self) -> None:
        tenants = self._services.store.tenants
        now_ms = self._services.clock.now_ms()
        for tenant in await tenants.unpurged():
            is_over = await tenant_end.clean_up(self._services, tenant.tenant_id)
            since_ms = now_ms - (tenant.deleted_at_ms or now_ms)
            if is_over and since_ms >= PURGE_AFTER_S * 1000:
                await tenants.purged(tenant.tenant_id)
                _log.info("tenant purged", tenant_id=tenant.tenant_id)

    async def _forget_runs(self) -> None:
        """Look at the next runs of each tenant, the oldest first, and from the start again."""
        inventory = self._services.store.inventory
        kept_ms = round(self._services.settings.ended_run_kept_days * 24 * 3600 * 1000)
        before_ms = self._services.clock.now_ms() - kept_ms
        for tenant_id in await inventory.tenant_ids():
            offset = self._num_runs_kept.pop(tenant_id, 0)
            ended, has_more = await inventory.ended_runs(
                tenant_id, before_ms, offset, MAX_RUNS_AT_ONCE
            )
            num_dropped = 0
            for model in ended:
                num_dropped += await inventory.drop_run(model)
            if num_dropped:
                _log.info("runs forgotten", tenant_id=tenant_id, num_runs=num_dropped)
            if has_more:
                self._num_runs_kept[tenant_id] = offset + MAX_RUNS_AT_ONCE - num_dropped
