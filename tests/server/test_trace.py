from __future__ import annotations

import json
from typing import Any

from cyclora_core.operations import OperationKind
from cyclora_core.store.traces import TracedOperation
from cyclora_core.types import Execution
from cyclora_server.trace import chrome_trace
from server.doubles.builders import MODEL, SAMPLER

PASS = OperationKind.FORWARD_BACKWARD


def operation(
    request_id: str = f"{MODEL}:1",
    ran: Execution | None = Execution(7, 1010, 1020),  # noqa: B008 - frozen
    settled_at_ms: int | None = 1050,
    is_done: bool = True,
) -> TracedOperation:
    return TracedOperation(request_id, PASS, 1000, ran, settled_at_ms, is_done)


def events(*operations: TracedOperation, now_ms: int = 2000) -> list[dict[str, Any]]:
    return json.loads(chrome_trace(operations, now_ms))["traceEvents"]


def slices(found: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Name, begin and end in milliseconds, matched as a viewer does: by id, innermost first."""
    open_ones: dict[str, list[tuple[str, int]]] = {}
    closed: list[tuple[str, int, int]] = []
    for event in found:
        stack = open_ones.setdefault(event.get("id", ""), [])
        if event["ph"] == "b":
            stack.append((event["name"], event["ts"]))
        elif event["ph"] == "e":
            name, begin = stack.pop()
            assert name == event["name"]
            closed.append((name, begin // 1000, event["ts"] // 1000))
    assert not any(open_ones.values())
    return closed


def test_an_operation_shows_where_it_was_and_when() -> None:
    assert slices(events(operation())) == [
        ("queued", 1000, 1010),
        ("dispatched", 1010, 1020),
        ("running in cycle 7", 1020, 1050),
        ("forward_backward", 1000, 1050),
    ]


def test_what_waits_lasts_until_now() -> None:
    found = events(operation(ran=None, settled_at_ms=None, is_done=False))

    assert slices(found) == [("queued", 1000, 2000), ("forward_backward", 1000, 2000)]
    assert found[1]["args"]["outcome"] == "waiting"


def test_each_model_and_each_sampling_session_is_a_process_of_its_name() -> None:
    found = events(operation(), operation(f"{SAMPLER}:4"), operation(f"{MODEL}:2"))

    names = {each["pid"]: each["args"]["name"] for each in found if each["ph"] == "M"}
    assert sorted(names.values()) == ["sample:0", "train:0"]
    where = {each["id"]: names[each["pid"]] for each in found if each["ph"] == "b"}
    assert where == {
        f"{MODEL}:1": "train:0",
        f"{MODEL}:2": "train:0",
        f"{SAMPLER}:4": "sample:0",
    }


def test_clocks_that_disagree_make_no_slice_end_before_it_begins() -> None:
    found = slices(events(operation(ran=Execution(7, 900, 1100), settled_at_ms=950)))

    assert all(begin <= end for _, begin, end in found)
    assert [name for name, _, _ in found][-1] == "forward_backward"


def test_an_operation_that_failed_says_so() -> None:
    details = events(operation(is_done=False))[1]["args"]

    assert details == {"request_id": f"{MODEL}:1", "outcome": "failed", "cycle_id": 7}


def test_a_session_without_operations_is_an_empty_trace() -> None:
    assert events() == []
