"""A session's operations as a file that Perfetto shows: Chrome's trace event format, in JSON.

Each model and each sampling session is a process, each operation a slice from its submission to
its end, with slices inside for where it was: queued, dispatched, running in a cycle. Operations
overlap, so all slices are nestable asynchronous ones ("b" and "e"), which Perfetto lays out by
itself.

The instants are those of several machines' clocks; where they disagree, a slice begins where the
one before ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cyclora_core.store.traces import TracedOperation

Event = dict[str, Any]


def chrome_trace(operations: Sequence[TracedOperation], now_ms: int) -> bytes:
    """The file; what has not settled lasts until ``now_ms``."""
    pids: dict[str, int] = {}
    events: list[Event] = []
    for each in operations:
        owner_id = each.request_id.rpartition(":")[0]
        if owner_id not in pids:
            pids[owner_id] = len(pids) + 1
            events.append(_named("process_name", pids[owner_id], owner_id.partition(":")[2]))
        events += _slices(each, pids[owner_id], now_ms)
    value = {"traceEvents": events, "displayTimeUnit": "ms"}
    return json.dumps(value, separators=(",", ":")).encode()


def _named(what: str, pid: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": 0, "args": {"name": name}}


def _slices(operation: TracedOperation, pid: int, now_ms: int) -> Iterator[Event]:
    """Begin and end of the whole, and of each part within."""
    details: dict[str, Any] = {
        "request_id": operation.request_id,
        "outcome": "done" if operation.is_done else "failed",
    }
    if operation.settled_at_ms is None:
        details["outcome"] = "waiting"
    parts = [("queued", operation.submitted_at_ms)]
    if operation.ran is not None:
        parts.append(("dispatched", operation.ran.dispatched_at_ms))
        parts.append((f"running in cycle {operation.ran.cycle_id}", operation.ran.started_at_ms))
        details["cycle_id"] = operation.ran.cycle_id
    begin_ms = operation.submitted_at_ms
    starts: list[tuple[str, int]] = []
    for name, at_ms in parts:
        begin_ms = max(begin_ms, at_ms)
        starts.append((name, begin_ms))
    end_ms = max(begin_ms, operation.settled_at_ms or now_ms)
    common = {"cat": "operation", "pid": pid, "tid": 0, "id": operation.request_id}
    yield _event("b", str(operation.kind), operation.submitted_at_ms, common, details)
    ends = [*(at_ms for _, at_ms in starts[1:]), end_ms]
    for (name, start_ms), stop_ms in zip(starts, ends, strict=True):
        yield _event("b", name, start_ms, common)
        yield _event("e", name, stop_ms, common)
    yield _event("e", str(operation.kind), end_ms, common)


def _event(
    phase: str, name: str, at_ms: int, common: Event, details: dict[str, Any] | None = None
) -> Event:
    event = {"ph": phase, "name": name, "ts": at_ms * 1000, **common}
    return event if details is None else {**event, "args": details}
