"""One ``cyclora up`` from its start to its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclora_client.up import specs, valkey
from cyclora_client.up.bootstrap import bootstrap
from cyclora_client.up.children import Child
from cyclora_client.up.display import Display
from cyclora_client.up.folder import DataFolder
from cyclora_client.up.options import UpOptions
from cyclora_client.up.summary import Pids, ReadyModel, Summary
from cyclora_client.up.supervisor import Supervisor
from cyclora_core.errors import CycloraError

STOP_TIMEOUT_S = 30.0
"""Seconds a process gets to finish what it does; killing it loses no acknowledged work."""

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_KILLED = 130

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_up(options: UpOptions, display: Display) -> int:
    """Run everything until asked to stop; returns the exit code of ``cyclora up``."""
    folder = DataFolder(options.data)
    try:
        folder.create()
        with folder.lock() as lock_descriptor, folder.socket_path() as socket_path:
            return asyncio.run(_run(options, folder, socket_path, lock_descriptor, display))
    except (CycloraError, OSError) as error:
        display.failed(error)
        return EXIT_FAILED


async def _run(
    options: UpOptions,
    folder: DataFolder,
    socket_path: Path,
    lock_descriptor: int,
    display: Display,
) -> int:
    supervisor = Supervisor(display)
    machine = _Machine(options, folder, supervisor)
    signals = _Signals(supervisor)
    starting = asyncio.create_task(machine.start(socket_path, lock_descriptor))
    failing = asyncio.create_task(supervisor.until_failure())
    stopping = asyncio.create_task(signals.stop_asked.wait())
    try:
        await _first(starting, failing, stopping)
        # A failed child is the better explanation when the start failed for the same reason.
        if not (failing.done() or stopping.done()):
            display.ready(starting.result())
            await _first(failing, stopping)
        if failing.done():
            failing.result()
    finally:
        await _cancel(starting, failing, stopping)
        if not signals.killed:
            display.notice("stopping")
        await machine.stop()
    return EXIT_KILLED if signals.killed else EXIT_STOPPED


class _Signals:
    """The first signal asks everything to stop; Ctrl-C after that kills it.

    A second SIGTERM does not: service managers repeat it, and they have SIGKILL.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.stop_asked = asyncio.Event()
        self.killed = False
        self._supervisor = supervisor
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        if self.stop_asked.is_set() and number == signal.SIGINT:
            self.killed = True
            self._supervisor.kill()
        self.stop_asked.set()


class _Machine:
    """The processes of one data folder, in the order they depend on one another."""

    def __init__(self, options: UpOptions, folder: DataFolder, supervisor: Supervisor) -> None:
        self._options = options
        self._folder = folder
        self._supervisor = supervisor
        self._store: list[Child] = []
        self._others: list[Child] = []
        """In the order they are stopped: whoever takes work from others goes before them."""

    async def start(self, socket_path: Path, lock_descriptor: int) -> Summary:
        """Start everything and wait until all of it is ready."""
        options, folder, start = self._options, self._folder, self._supervisor.start
        store = start(
            specs.store_spec(folder, socket_path, lock_descriptor, options.store_memory_bytes)
        )
        self._store = [store]
        await store.ready.wait()
        redis_url = valkey.redis_url(socket_path)
        credentials = await bootstrap(redis_url, specs.KEY_PREFIX, folder.credentials_file)

        workers = [start(spec) for spec in specs.worker_specs(options, folder, redis_url)]
        scheduler = start(specs.scheduler_spec(options, folder, redis_url))
        server = start(specs.server_spec(options, folder, redis_url))
        self._others = [*workers, scheduler, server]
        await server.ready.wait()
        port = _fact(server, "port") or options.port
        # Clients know this port from now on, so a server that is restarted must take it again.
        server.environment["CYCLORA_PORT"] = str(port)
        await _all_ready(self._others)
        return Summary(
            base_url=f"http://{_reachable(options.host)}:{port}",
            credentials=credentials,
            credentials_file=folder.credentials_file,
            base_models=[
                ReadyModel(model.name, _fact(worker, "tokenizer_path"))
                for model, worker in zip(options.base_models, workers, strict=True)
            ],
            pids=Pids(server.pid, scheduler.pid, [worker.pid for worker in workers], store.pid),
        )

    async def stop(self) -> None:
        """Stop in order; the store goes last, so that the others can settle their work."""
        await self._supervisor.stop(self._others, STOP_TIMEOUT_S)
        await self._supervisor.stop(self._store, STOP_TIMEOUT_S)


async def _all_ready(children: Sequence[Child]) -> None:
    """Wait until all are ready at the same moment; one may die again while another loads."""
    while not all(child.ready.is_set() for child in children):
        for child in children:
            await child.ready.wait()


def _fact(child: Child, name: str) -> Any:
    return child.report.facts.get(name) if child.report else None


def _reachable(host: str) -> str:
    """The host as a client on this machine can name it."""
    if host in ("", "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


async def _first(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
