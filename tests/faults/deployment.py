"""A whole deployment of real processes that is started again, in part or as a whole, in a moment.

Settings are those of ``cyclora up`` except for the times after which somebody counts as dead,
which are short, and the number of threads, which decides on bits and must not change.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cyclora_client.admin import AdminClient
from cyclora_client.up import valkey
from cyclora_client.up.bootstrap import bootstrap
from cyclora_client.up.specs import KEY_PREFIX
from cyclora_core.store.keys import Keys
from cyclora_core.usage import GroupBy, Meter
from faults.points import WIRE_FOLDER_VARIABLE
from faults.processes import DEADLINE_S, Ending, Processes
from faults.wire import Wire
from faults.zygote import Order

PLAIN_WORKER = "cyclora_workers.__main__:main"
TRIPPED_WORKER = "faults.tripwires:main"

_POLL_S = 0.01
_SETTINGS = {
    "CYCLORA_KEY_PREFIX": KEY_PREFIX,
    "CYCLORA_NUM_THREADS": "1",
    "CYCLORA_DEVICE": "cpu",
    "CYCLORA_LEADER_LEASE_S": "1",
    "CYCLORA_IDLE_WAIT_S": "0.2",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Which processes a deployment consists of, besides its server and its store."""

    workers: tuple[str, ...] = ("worker",)
    schedulers: tuple[str, ...] = ("scheduler",)
    worker_command: str = TRIPPED_WORKER
    worker_lease_s: float = 5.0
    has_metrics: bool = False


class Deployment:
    """Processes on one folder; what ends is started again until ``stop``."""

    def __init__(
        self, processes: Processes, folder: Path, sockets: Path, wire: Wire, shape: Shape
    ) -> None:
        self.storage = folder / "storage"
        self.wire = wire
        self._processes = processes
        self._folder = folder
        self._sockets = sockets
        self._shape = shape
        self._names: list[str] = []
        """In the order in which they were started."""
        self._redis_url = valkey.redis_url(sockets / "valkey.sock")
        self._port = _free_port()
        self.metrics_ports: dict[str, int] = {}
        """By the name of each process, if its shape has metrics."""
        self._admin_key = ""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start everything and wait until it is ready; also again after ``stop``."""
        self.storage.mkdir(parents=True, exist_ok=True)
        config = self._folder / "valkey.conf"
        valkey.write_config(config, self._folder, self._sockets / "valkey.sock")
        self._start("valkey", [valkey.find_binary(), str(config)], {})
        self.wait_for(self._is_store_ready, "valkey")
        credentials = self._folder / "credentials.json"
        self._admin_key = asyncio.run(bootstrap(self._redis_url, KEY_PREFIX, credentials)).admin_key
        for name in self._shape.workers:
            self.start_worker(name)
        for name in self._shape.schedulers:
            self._start(name, ["cyclora_scheduler.__main__:main"], {})
        settings = {"CYCLORA_PORT": str(self._port)}
        self._start("server", ["cyclora_server.__main__:main"], settings)
        self.wait_ready()

    def start_worker(self, name: str) -> None:
        """Have a worker run from now on; returns at once."""
        settings = {
            "CYCLORA_WORKER_NAME": name,
            "CYCLORA_LEASE_S": str(self._shape.worker_lease_s),
            WIRE_FOLDER_VARIABLE: str(self._sockets),
        }
        self._start(name, [self._shape.worker_command], settings)

    def _start(self, name: str, command: list[str], settings: Mapping[str, str]) -> None:
        environment = {
            **_SETTINGS,
            "CYCLORA_REDIS_URL": self._redis_url,
            "CYCLORA_STORAGE_URL": str(self.storage),
            "CYCLORA_READY_FILE": str(self._ready_file(name)),
            **settings,
        }
        if self._shape.has_metrics and name != "valkey":
            port = self.metrics_ports[name] = _free_port()
            environment["CYCLORA_METRICS_PORT"] = str(port)
        self._names.append(name)
        self._processes.start(
            Order(self._place(name), command, environment, str(self.log_file(name)))
        )

    def _place(self, name: str) -> str:
        """The name among all processes of the test session."""
        return f"{self._port}/{name}"

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def pid(self, name: str) -> int:
        return self._processes.pid(self._place(name))

    def name_of(self, pid: int) -> str:
        return next(name for name in self._names if self.pid(name) == pid)

    def ending(self, pid: int) -> Ending:
        """How a process ended, waiting for it."""
        return self._processes.ending(pid)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> Ending:
        """Signal a process and wait until it has ended; the next one starts at once."""
        return self._processes.kill(self._place(name), number)

    def stop_one(self, name: str, number: signal.Signals = signal.SIGKILL) -> Ending:
        """Signal a process for good and wait until it has ended."""
        self._names.remove(name)
        return self._processes.stop(self._place(name), number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> list[Ending]:
        """Signal everything for good, workers first and the store last as ``cyclora up`` does."""
        order = sorted(self._names, key=lambda name: (name == "valkey", self._names.index(name)))
        return [self.stop_one(name, number) for name in order]

    def wait_ready(self) -> None:
        """Return when every process has been ready at its latest start."""
        for name in self._names:
            self.wait_for(lambda name=name: self._is_ready(name), name)

    def _is_store_ready(self) -> bool:
        report = valkey.Ping(self._sockets / "valkey.sock").read()
        return report is not None and report.is_ready

    def _is_ready(self, name: str) -> bool:
        if name == "valkey":
            return self._is_store_ready()
        try:
            report: Any = json.loads(self._ready_file(name).read_text())
        except FileNotFoundError:
            return False
        is_loading = "stage" in report
        return not is_loading and report["pid"] == self.pid(name)

    def wait_for(self, condition: Callable[[], bool], name: str) -> None:
        """Wait for something that the process of this name is to bring about."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"waited {DEADLINE_S:g} s for {name}; its log ends:\n{self.log(name)[-4000:]}"
                )
            time.sleep(_POLL_S)

    def _ready_file(self, name: str) -> Path:
        return self._folder / f"{name}.ready"

    def log_file(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_file(name).read_text() if self.log_file(name).exists() else ""

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        """The log lines of one event that a process has written so far."""
        rows = [json.loads(r) for r in self.log(name).splitlines() if r.startswith("{")]
        return [row for row in rows if row.get("event") == event]

    def new_tenant(self, name: str) -> tuple[str, str]:
        """A fresh tenant's id and API key."""
        with AdminClient(self.base_url, self._admin_key) as admin:
            tenant_id = admin.tenants.create(name).tenant_id
            return tenant_id, admin.keys.create(tenant_id, "test").api_key

    def usage(self, tenant_id: str) -> dict[str, int]:
        """Tokens metered for a tenant, by kind, as the store has them; kinds without any left out,
        since ending a run meters 0 tokens at some later moment."""
        retry = Retry(ConstantBackoff(0.05), 200)
        with redis.Redis.from_url(self._redis_url, retry=retry) as client:
            rows: Any = client.hgetall(Keys(KEY_PREFIX).usage(tenant_id))
        return {name.decode(): int(count) for name, count in sorted(rows.items()) if int(count)}

    def charged(self, tenant_id: str) -> dict[str, list[int]]:
        """What was metered for a tenant as the usage route tells runs, keys and projects apart.

        The amounts of each meter, without the names, which differ from tenant to tenant; without
        bytes, which are counted by the time that they are stored.
        """
        amounts: dict[str, list[int]] = {}
        with AdminClient(self.base_url, self._admin_key) as admin:
            for by in (GroupBy.RUN, GroupBy.KEY, GroupBy.PROJECT):
                for row in admin.usage.sums([GroupBy.METER, by], tenants=[tenant_id]):
                    meter, amount = row.group[GroupBy.METER], row.amounts["amount"]
                    if amount and meter != Meter.STORED:
                        amounts.setdefault(f"{meter} by {by}", []).append(amount)
        return {name: sorted(found) for name, found in amounts.items()}


@contextmanager
def deployed(
    processes: Processes, folder: Path, shape: Shape | None = None
) -> Generator[Deployment]:
    """Run a deployment on a folder, and end all of it."""
    # Paths of unix sockets are limited to about 107 bytes, which pytest's folders exceed.
    with tempfile.TemporaryDirectory(prefix="cyc-") as sockets, Wire(Path(sockets)) as wire:
        deployment = Deployment(processes, folder, Path(sockets), wire, shape or Shape())
        try:
            deployment.start()
            yield deployment
        finally:
            deployment.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
