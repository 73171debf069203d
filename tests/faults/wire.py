"""The test's end of the tripwires: what is armed, and what is done when a worker stands there."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from faults.points import ARMED_FILE, SOCKET_FILE, Kind, Point

Reaction = Callable[[int], None]
"""What is done to somebody while the worker of this process id waits."""


@dataclass(frozen=True, slots=True)
class Trip:
    """A worker reached the armed point; ``at_s`` is when the reaction was done, monotonic."""

    pid: int
    at_s: float


class Wire:
    """Trips at most once per arming; the worker goes on when the reaction is done."""

    def __init__(self, folder: Path) -> None:
        self._armed_file = folder / ARMED_FILE
        self._armed = ""
        self._react: Reaction | None = None
        self._trip: Trip | None = None
        self._error: Exception | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET_FILE))
        self._listener.listen()
        self._thread = threading.Thread(target=self._listen, name="wire", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def arm(self, point: Point, kind: Kind, react: Reaction) -> None:
        """Call ``react`` when a worker reaches the point with an operation of the kind."""
        self._armed, self._react = f"{point}/{kind}", react
        self._trip, self._error = None, None
        part = self._armed_file.with_suffix(".part")
        part.write_text(self._armed)
        part.replace(self._armed_file)

    def disarm(self) -> Trip | None:
        """What happened since ``arm``; None when nothing stood at the point.

        Raises:
            Exception: what the reaction raised.
        """
        self._armed_file.unlink(missing_ok=True)
        self._react = None
        if self._error is not None:
            raise self._error
        return self._trip

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                news = json.loads(lines.readline())
                self._tripped(f"{news['point']}/{news['kind']}", news["pid"])
                with suppress(OSError):  # it was the victim
                    connection.send(b"\n")

    def _tripped(self, where: str, pid: int) -> None:
        react, self._react = self._react, None
        if react is None or where != self._armed:
            return
        self._armed_file.unlink(missing_ok=True)
        try:
            react(pid)
        except Exception as error:  # noqa: BLE001 - raised again where the test looks
            self._error = error
        self._trip = Trip(pid, time.monotonic())
