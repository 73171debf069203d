"""One supervised process: what to run, and the process that runs now."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cyclora_client.up import tether
from cyclora_client.up.probes import Probe, Report
from cyclora_client.up.restart import RestartPolicy

_TAIL_BYTES = 4096

_NOT_FOR_CHILDREN = {"CYCLORA_URL", "CYCLORA_ADMIN_KEY"}
"""What the admin commands read; no setting of any process, and a secret."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How a child is started; the same at every restart."""

    name: str
    command: Sequence[str]
    probe: Probe
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to the supervisor's own."""
    inherited_descriptors: Sequence[int] = ()


class Child:
    """A spec, its running process if there is one, and what is known about it."""

    def __init__(self, spec: ProcessSpec, policy: RestartPolicy) -> None:
        self.spec = spec
        self.policy = policy
        self.ready = asyncio.Event()
        """Set while the present process is ready."""
        self.stop_asked = asyncio.Event()
        """Once set the child is not started again."""
        self.report: Report | None = None
        self.environment = dict(spec.environment)
        """May be fixed further once known, such as a port that was any at the first start."""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None between two starts."""
        return self._process.pid if self._process else None

    async def run_once(self) -> int:
        """Start the process, wait for its end and return its exit code (negative: a signal)."""
        self.spec.probe.reset()
        self.report = None
        log = os.open(self.spec.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A session of its own: Ctrl-C at the terminal reaches only the supervisor, which
            # then stops everything in order.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", tether.__file__, str(os.getpid())),
                *self.spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_inherited(), **self.environment},
                start_new_session=True,
                pass_fds=self.spec.inherited_descriptors,
            )
        finally:
            os.close(log)
        process = self._process
        if self.stop_asked.is_set():
            self.terminate()  # the order to stop came while the process was being made
        try:
            return await process.wait()
        finally:
            self._process = None
            # Ranks of a sharded worker must not keep the GPU when their leader is gone.
            _signal_group(process.pid, signal.SIGKILL)

    def read_report(self) -> Report | None:
        """What the present process says; None before it runs."""
        return self.spec.probe.read() if self._process else None

    def terminate(self) -> None:
        if self.pid is not None:
            _signal(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.pid is not None:
            _signal_group(self.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """The end of the log, in whole lines."""
        try:
            with open(self.spec.log_file, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return text if size <= _TAIL_BYTES else text.partition("\n")[2]


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in os.environ if name not in _NOT_FOR_CHILDREN}


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    # PermissionError is what macOS says of a group of which only a zombie is left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
