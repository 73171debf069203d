"""Connections that send nothing, or the headers of a request byte by byte.

Uvicorn bounds the silence after an answer, and nothing else: whoever opens thousands of connections
and begins a request on each would keep them all for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import structlog

from cyclora_core.clock import Clock

_log = structlog.get_logger()


class Connection(Protocol):
    """What both of uvicorn's HTTP protocols have."""

    transport: Any
    cycle: Any
    """Of the latest request whose headers are complete; None before the first."""
    timeout_keep_alive_task: Any
    """Runs from an answer to the next byte."""


class HeaderWatch:
    """Closes what has waited for the rest of a request's headers for too long."""

    def __init__(self, timeout_s: float, clock: Clock) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._since_s: dict[Connection, float] = {}

    def look(self, connections: Iterable[Connection]) -> int:
        """Look at all connections there are; returns how many were closed."""
        now_s = self._clock.mono_s()
        waiting = [each for each in connections if _is_waiting(each)]
        self._since_s = {each: self._since_s.get(each, now_s) for each in waiting}
        late = [
            each for each, since_s in self._since_s.items() if now_s - since_s > self._timeout_s
        ]
        for connection in late:
            connection.transport.abort()
            del self._since_s[connection]
        if late:
            _log.warning("connections without a request closed", num_connections=len(late))
        return len(late)


def _is_waiting(connection: Connection) -> bool:
    is_answering = connection.cycle is not None and not connection.cycle.response_complete
    return not is_answering and connection.timeout_keep_alive_task is None
