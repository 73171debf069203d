"""The processes under test by name: started, killed, and started again at once."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faults.zygote import MAX_MESSAGE_BYTES, Order

DEADLINE_S = 60.0
"""Far beyond what anything here takes; reaching it is a failure, not a wait."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One process that ended; ``code`` is negative for a signal."""

    name: str
    pid: int
    code: int


class Processes:
    """Forks of one zygote. Each is started again as soon as it ends, as a supervisor would do,
    unless it was told to stay down."""

    def __init__(self) -> None:
        tests = Path(__file__).parents[1]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CYCLORA_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(tests), environment.get("PYTHONPATH", "")]),
            "OMP_WAIT_POLICY": "passive",
            "OPENBLAS_NUM_THREADS": "1",  # else numpy starts threads when it is imported
            "LC_ALL": "C",
        }
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "faults.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the test, which ends them in order
            )
        self._changed = threading.Condition()
        self._pids: dict[str, int] = {}
        self._orders: dict[str, Order] = {}
        """What is to run; a name that is not here stays down."""
        self._endings: list[Ending] = []
        self._is_lost = False
        self._reader = threading.Thread(target=self._read, name="zygote", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote, and with it everything that runs."""
        with self._changed:
            self._orders.clear()
        self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._zygote.wait(DEADLINE_S)
        finally:
            self._zygote.kill()
            self._reader.join()
            self._control.close()

    def start(self, order: Order) -> None:
        """Have a process run from now on; returns at once."""
        with self._changed:
            self._orders[order.name] = order
            self._send(order)

    def pid(self, name: str) -> int:
        """The process that runs under a name, waiting for one that is being started."""
        with self._changed:
            self._wait(lambda: name in self._pids, f"{name} to start")
            return self._pids[name]

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> Ending:
        """Signal a process and wait until it has ended; the next one starts at once."""
        pid = self.pid(name)
        os.kill(pid, number)
        return self.ending(pid)

    def stop(self, name: str, number: signal.Signals = signal.SIGKILL) -> Ending:
        """Signal a process for good and wait until it has ended."""
        with self._changed:
            self._orders.pop(name)
        return self.kill(name, number)

    def ending(self, pid: int) -> Ending:
        """How a process ended, waiting for it."""
        with self._changed:
            self._wait(lambda: any(e.pid == pid for e in self._endings), f"{pid} to end")
            return next(each for each in self._endings if each.pid == pid)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        if not self._changed.wait_for(lambda: self._is_lost or condition(), DEADLINE_S):
            raise TimeoutError(f"waited {DEADLINE_S:g} s for {what}")
        if not condition():
            raise RuntimeError(f"the zygote ended while a test waited for {what}")

    def _send(self, order: Order) -> None:
        message = json.dumps(dataclasses.asdict(order)).encode()
        assert len(message) < MAX_MESSAGE_BYTES
        self._control.send(message)

    def _read(self) -> None:
        while message := self._control.recv(MAX_MESSAGE_BYTES):
            self._note(json.loads(message))
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()

    def _note(self, news: dict[str, Any]) -> None:
        with self._changed:
            if "code" in news:
                ending = Ending(**news)
                self._endings.append(ending)
                self._pids.pop(ending.name, None)
                if order := self._orders.get(ending.name):
                    self._send(order)
            else:
                self._pids[news["name"]] = news["pid"]
            self._changed.notify_all()
