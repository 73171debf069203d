"""A process that has imported everything and forks the processes under test.

Importing torch and transformers takes five seconds; a fork of this process is ready to run in
milliseconds, and is a process like any other to SIGKILL. Run as ``python -m faults.zygote FD``
where FD is a socket of the test: one JSON message per packet, ``Order`` in, and out::

    {"name": ..., "pid": ...}                   started
    {"name": ..., "pid": ..., "code": ...}      ended; negative for a signal

When the test ends, in whatever way, the socket ends, and with it everything that was started.
All forks share one hash seed, unlike real processes; ``test_worker_killed`` restarts real ones.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MAX_MESSAGE_BYTES = 65_536

_PRELOADED = (
    "cyclora_server.__main__",
    "cyclora_scheduler.__main__",
    "faults.tripwires",
    "transformers.models.qwen3.modeling_qwen3",
)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Order:
    """One process to start: a Python function ``module:name``, or a program with arguments."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log_file: str


def main() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy every page that holds an object
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _Zygote(control).run()


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._pids: dict[int, int] = {}
        """Descriptors that become readable when a child ends, and which child it is."""

    def run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj is not self._control:
                        self._reap(key.fd, key.data)
                    elif message := self._control.recv(MAX_MESSAGE_BYTES):
                        self._start(Order(**json.loads(message)))
                    else:
                        return
        finally:
            for pid in self._pids.values():
                os.kill(pid, signal.SIGKILL)

    def _start(self, order: Order) -> None:
        # A thread that does not exist after the fork may hold a lock for ever.
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"the zygote has {len(threads)} threads"
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._control.close()
            self._selector.close()
            _become(order, parent)
        descriptor = os.pidfd_open(pid)
        self._pids[descriptor] = pid
        self._selector.register(descriptor, selectors.EVENT_READ, order.name)
        self._send(name=order.name, pid=pid)

    def _reap(self, descriptor: int, name: str) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)
        pid = self._pids.pop(descriptor)
        _, status = os.waitpid(pid, 0)
        self._send(name=name, pid=pid, code=os.waitstatus_to_exitcode(status))

    def _send(self, **message: Any) -> None:
        self._control.send(json.dumps(message).encode())


def _become(order: Order, parent: int) -> NoReturn:
    """Turn a fresh fork into the process that was ordered."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(code)
        with Path(order.log_file).open("ab") as log, Path(os.devnull).open("rb") as nothing:
            for target, file in ((0, nothing), (1, log), (2, log)):
                os.dup2(file.fileno(), target)
        os.environ.update(order.environment)
        program, *arguments = order.command
        if ":" not in program:
            os.execv(program, [program, *arguments])
        module, _, function = program.partition(":")
        run: Callable[[], None] = getattr(importlib.import_module(module), function)
        run()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - nothing may fall through into the zygote's own loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
