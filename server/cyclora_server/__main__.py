"""Run one server process: ``python -m cyclora_server``, configured by ``CYCLORA_...``."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from cyclora_core.clock import SystemClock
from cyclora_core.environment import settings_or_exit
from cyclora_core.logs import configure_logs
from cyclora_core.metrics_endpoint import metrics_served
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_server.app import create_app
from cyclora_server.connections import HeaderWatch
from cyclora_server.services import Services
from cyclora_server.settings import Settings

_log = structlog.get_logger()

_KEEP_ALIVE_S = 75
"""Heartbeats come every 10 s; a connection closed between two would cost a handshake each."""

_BACKLOG = 2048

_MAX_OPEN_FILES = 65_536
"""Every held poll has a connection of its own, and a client may hold hundreds."""

_CLOSE_INTERVAL_S = 0.1

_HEADER_WATCH_S = 1.0


class _Server(uvicorn.Server):
    """Tells where it listens, and lets held polls go when it is told to stop."""

    def __init__(self, config: uvicorn.Config, services: Services, ready_file: Path | None) -> None:
        super().__init__(config)
        self._services = services
        self._ready_file = ready_file
        self._watching: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop in order when told to; uvicorn would end the process before the store closes."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started or not sockets:
            return
        port: int = sockets[0].getsockname()[1]
        if self._ready_file is not None:
            _write_atomically(self._ready_file, json.dumps({"port": port, "pid": os.getpid()}))
        _log.info("server listening", port=port, pid=os.getpid())
        self._watching = asyncio.create_task(self._watch_headers(), name="header watch")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.hub.close()
        closing = asyncio.create_task(self._close_late_connections())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()
            if self._watching is not None:
                self._watching.cancel()

    async def _watch_headers(self) -> None:
        watch = HeaderWatch(self._services.settings.header_timeout_s, self._services.clock)
        while True:
            await asyncio.sleep(_HEADER_WATCH_S)
            watch.look(list(self.server_state.connections))

    async def _close_late_connections(self) -> None:
        """Ask connections to close, again and again.

        Uvicorn asks once; one that was just being made then would be kept, idle, until the grace
        is over.
        """
        while True:
            await asyncio.sleep(_CLOSE_INTERVAL_S)
            for connection in list(self.server_state.connections):
                connection.shutdown()


def main() -> None:
    """Serve until told to stop."""
    settings = settings_or_exit(Settings)
    configure_logs("server", level=settings.log_level, as_json=settings.log_json)
    _raise_open_files_limit()
    asyncio.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Open the store, serve, and close the store again."""
    clock = SystemClock()
    store = await Store.open(
        settings.redis_url, settings.key_prefix, clock, timeout_s=settings.store_timeout_s
    )
    try:
        app = create_app(settings, store, Storage(Path(settings.storage_url)), clock)
        services: Services = app.state.services
        registry = services.metrics.instruments.registry
        host, port = settings.metrics_host, settings.metrics_port
        with metrics_served(host, port, registry, services.health):
            await _listen(app, settings)
    finally:
        await store.close()


async def _listen(app: FastAPI, settings: Settings) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        backlog=_BACKLOG,
        server_header=False,
    )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    # asyncio does this only for sockets whose protocol number is TCP's; create_server leaves it 0.
    # Without it the body of every answer waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        services: Services = app.state.services
        server = _Server(config, services, settings.ready_file)
        services.metrics.num_connections = lambda: len(server.server_state.connections)
        await server.serve(sockets=[listener])


def _raise_open_files_limit() -> None:
    """Let the process have as many connections as it may; shells often begin with 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.warning("limit of open files not raised", soft=soft, wanted=wanted, error=str(error))


def _write_atomically(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    part.replace(file)


if __name__ == "__main__":
    main()
