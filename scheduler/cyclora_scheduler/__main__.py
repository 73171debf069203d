"""The scheduler process: ``python -m cyclora_scheduler``."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import structlog

from cyclora_core.clock import SystemClock
from cyclora_core.logs import configure_logs
from cyclora_core.store import Store
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.settings import SchedulerSettings


async def serve(settings: SchedulerSettings) -> None:
    """Schedule until SIGTERM or SIGINT."""
    store = await Store.open(settings.redis_url, settings.key_prefix)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if settings.ready_file is not None:
        part = settings.ready_file.with_suffix(".part")
        part.write_text(json.dumps({"pid": os.getpid()}))
        part.replace(settings.ready_file)
    try:
        await Scheduler(store, settings, SystemClock()).run(stopping)
    finally:
        await store.close()


def main() -> None:
    settings = SchedulerSettings()
    configure_logs("scheduler", level=settings.log_level, as_json=settings.log_json)
    structlog.get_logger().info("scheduler started", pid=os.getpid())
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
