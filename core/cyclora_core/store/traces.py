"""When the operations of a session were queued, dispatched, running and settled.

A line of text each, written as the operation settles; what still waits is read from where it waits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cyclora_core.operations import OperationKind
from cyclora_core.store.connection import Connection
from cyclora_core.types import Execution

MAX_TRACED = 2000
"""Settled operations of one session that are remembered, the newest: about 150 kB."""

TRACE_KEPT_S = 24 * 3600
"""For how long after the last one."""


@dataclass(frozen=True, slots=True)
class TracedOperation:
    """One operation's way, in milliseconds since the epoch by the clocks of those involved."""

    request_id: str
    kind: OperationKind
    submitted_at_ms: int
    ran: Execution | None = None
    """None while it waits."""
    settled_at_ms: int | None = None
    is_done: bool = False
    """Whether it settled with a result; else it failed, or has not settled."""


def trace_entry(
    request_id: str, kind: OperationKind, is_done: bool, ran: Execution | None, now_ms: int
) -> str:
    """What settling adds to the trace, behind the time of submission; "" when nothing is."""
    if ran is None:
        return ""
    times = f"{ran.cycle_id} {ran.dispatched_at_ms} {ran.started_at_ms} {now_ms}"
    return f"{request_id} {kind} {int(is_done)} {times}"


class Traces:
    """The read side; settling writes."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def settled(self, session_id: str) -> list[TracedOperation]:
        """The newest that have settled, in that order."""
        rows = await self._redis.lrange(self._keys.trace(session_id), 0, -1)
        return [_traced(row.decode()) for row in rows]

    async def waiting(self, model_ids: Sequence[str], limit: int) -> list[TracedOperation]:
        """The next operations of each model, at most ``limit``, that have not settled."""
        keys = self._keys
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in model_ids:
                pipe.hget(keys.model(model_id), "applied_seq_id")
            applied = await pipe.execute()
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id, seq_id in zip(model_ids, applied, strict=True):
                first = f"{int(seq_id or -1) + 1}-1"
                pipe.xrange(keys.log(model_id), first, "+", limit)
            rows = await pipe.execute()
        entries = [json.loads(fields[b"entry"]) for log in rows for _, fields in log]
        return [
            TracedOperation(
                entry["request_id"], OperationKind(entry["kind"]), entry["submitted_at_ms"]
            )
            for entry in entries
            if not entry["is_refused"]
        ]


def _traced(row: str) -> TracedOperation:
    submitted, request_id, kind, is_done, cycle_id, dispatched, started, settled = row.split(" ")
    return TracedOperation(
        request_id=request_id,
        kind=OperationKind(kind),
        submitted_at_ms=int(submitted or dispatched),
        ran=Execution(int(cycle_id), int(dispatched), int(started)),
        settled_at_ms=int(settled),
        is_done=is_done == "1",
    )
