"""The scheduler process: ``python -m cyclora_scheduler``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Coroutine
from typing import Any

import structlog

from cyclora_core.clock import SystemClock
from cyclora_core.environment import settings_or_exit
from cyclora_core.health import Health
from cyclora_core.logs import configure_logs
from cyclora_core.metrics_endpoint import metrics_served
from cyclora_core.store import Store
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.metrics import SchedulerMetrics
from cyclora_scheduler.settings import SchedulerSettings

_PATIENCE_S = 7 * 24 * 3600.0
"""A store that is full or away is waited for, not died of: there is nothing else to do."""

_STOP_S = 10.0


async def serve(settings: SchedulerSettings) -> None:
    """Schedule until SIGTERM or SIGINT."""
    metrics = SchedulerMetrics()
    health = Health(SystemClock(), metrics.instruments)
    registry = metrics.instruments.registry
    with metrics_served(settings.metrics_host, settings.metrics_port, registry, health):
        await _serve(settings, metrics, health)


async def _serve(settings: SchedulerSettings, metrics: SchedulerMetrics, health: Health) -> None:
    health.beat()
    beating = asyncio.create_task(health.keep_beating())
    store = await Store.open(
        settings.redis_url,
        settings.key_prefix,
        timeout_s=settings.store_timeout_s,
        patience_s=_PATIENCE_S,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if settings.ready_file is not None:
        part = settings.ready_file.with_suffix(".part")
        part.write_text(json.dumps({"pid": os.getpid()}))
        part.replace(settings.ready_file)
    scheduler = Scheduler(store, settings, SystemClock(), metrics=metrics)
    # Leading or standing by: either way it takes part as long as it gets round.
    health.ready_if("schedule", lambda: scheduler.is_moving)
    health.is_serving = True
    try:
        await _run(_tell_and_schedule(store, settings, scheduler, stopping), stopping)
    finally:
        health.is_serving = False
        beating.cancel()
        await store.close()


async def _tell_and_schedule(
    store: Store, settings: SchedulerSettings, scheduler: Scheduler, stopping: asyncio.Event
) -> None:
    name = settings.scheduler_name or socket.gethostname()
    await store.processes.put("scheduler", name, settings.model_dump(mode="json"))
    await scheduler.run(stopping)


async def _run(scheduling: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
    """Run, and when told to stop do not wait for a store that is away."""
    running = asyncio.create_task(scheduling)
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait([running, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    try:
        await asyncio.wait_for(running, _STOP_S)
    except TimeoutError:
        structlog.get_logger().warning("stopped while waiting for the store")


def main() -> None:
    settings = settings_or_exit(SchedulerSettings)
    configure_logs("scheduler", level=settings.log_level, as_json=settings.log_json)
    structlog.get_logger().info("scheduler started", pid=os.getpid())
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
