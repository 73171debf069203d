"""The sequential model accepts what a run may answer, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from faults.histories import Client, History, differences
from faults.histories_model import (
    Event,
    Kind,
    Operation,
    cycle_violations,
    metered,
    violations,
)
from faults.http_client import Outcome

PASS = Operation(Kind.PASS, num_tokens=10)
STEP = Operation(Kind.STEP)
SAVE = Operation(Kind.SAVE, name="a")
LOAD = Operation(Kind.LOAD, name="a", has_flag=True)
FRESH_LOAD = replace(LOAD, has_flag=False)
OVERFLOW = Operation(Kind.OVERFLOWING_PASS)
REFUSED = Outcome(None, "it cannot be", "user")


def event(operation: Operation, **result: Any) -> Event:
    return Event(operation, Outcome(result))


def passed(cycle: float = 1.0, operation: Operation = PASS) -> Event:
    return event(operation, metrics={"clock_cycle:unique": cycle, "loss:sum": 1.0})


def stepped(num_steps: int, grad_norm: float = 0.5) -> Event:
    return event(STEP, metrics={"num_steps": float(num_steps), "grad_norm": grad_norm})


def saved(operation: Operation = SAVE) -> Event:
    return event(operation, path=f"tinker://run/weights/{operation.name}")


def loaded(operation: Operation = LOAD) -> Event:
    return event(operation, path=f"tinker://run/weights/{operation.name}")


RIGHT: dict[str, list[Event]] = {
    "steps count from one": [passed(), stepped(1), passed(), stepped(2)],
    "a step without a pass has no gradient": [passed(), stepped(1), stepped(2, grad_norm=0.0)],
    "a refused pass accumulates nothing": [
        Event(Operation(Kind.INVALID_PASS), REFUSED),
        stepped(1, grad_norm=0.0),
    ],
    "a refused step takes nothing away": [
        passed(),
        Event(Operation(Kind.INVALID_STEP), REFUSED),
        stepped(1),
    ],
    "an overflown gradient costs its step": [
        passed(operation=OVERFLOW),
        Event(STEP, REFUSED),
        stepped(1, grad_norm=0.0),
    ],
    "a load with the optimizer goes on from the save": [
        *(passed(), stepped(1), saved(), stepped(2, 0.0), passed(), loaded(), stepped(2, 0.0)),
    ],
    "a load without the optimizer begins anew": [
        *(passed(), stepped(1), saved(), loaded(FRESH_LOAD), stepped(1, 0.0)),
    ],
    "a load leaves an overflown gradient behind": [
        *(saved(), passed(operation=OVERFLOW), loaded(), stepped(1, 0.0)),
    ],
    "a name is taken once": [saved(), Event(SAVE, REFUSED), saved(replace(SAVE, has_flag=True))],
    "a checkpoint that does not exist is not loaded": [Event(LOAD, REFUSED), saved()],
}

WRONG: dict[str, list[Event]] = {
    "a step is doubled": [passed(), stepped(2)],
    "a step is lost": [passed(), stepped(1), passed(), stepped(1)],
    "a pass is lost": [passed(), stepped(1, grad_norm=0.0)],
    "a pass is doubled into the next step": [passed(), stepped(1), stepped(2)],
    "a failed pass was accumulated": [Event(Operation(Kind.INVALID_PASS), REFUSED), stepped(1)],
    "an overflown gradient was kept": [
        *(passed(operation=OVERFLOW), Event(STEP, REFUSED), Event(STEP, REFUSED)),
    ],
    "an overflown gradient was stepped with": [passed(operation=OVERFLOW), stepped(1)],
    "an invalid step was taken": [event(Operation(Kind.INVALID_STEP), metrics={})],
    "a result is another's": [
        saved(),
        event(replace(SAVE, name="b"), path="tinker://run/weights/a"),
    ],
    "a load ran before the step in front of it": [
        *(saved(), passed(), stepped(1), loaded(), stepped(2, 0.0)),
    ],
    "a load ran before the save in front of it": [saved(), passed(), Event(LOAD, REFUSED)],
    "a load took the optimizer although it should not": [
        *(passed(), stepped(1), saved(), loaded(FRESH_LOAD), stepped(2, 0.0)),
    ],
    "a taken name was replaced": [saved(), saved()],
    "a free name was refused": [Event(SAVE, REFUSED)],
    "a save that should replace was refused": [
        *(saved(), Event(replace(SAVE, has_flag=True), REFUSED)),
    ],
    "a pass failed by itself": [Event(PASS, REFUSED)],
    "the server failed on what the tenant did wrong": [
        Event(Operation(Kind.INVALID_PASS), replace(REFUSED, category="server")),
    ],
    "a later pass ran in an earlier cycle": [passed(2.0), passed(1.0)],
}


@pytest.mark.parametrize("events", RIGHT.values(), ids=RIGHT)
def test_a_right_history_is_accepted(events: list[Event]) -> None:
    assert violations(events) == []


@pytest.mark.parametrize("events", WRONG.values(), ids=WRONG)
def test_a_wrong_history_is_rejected(events: list[Event]) -> None:
    assert len(violations(events)) == 1


def test_a_pass_asked_for_after_another_answered_is_in_a_later_cycle() -> None:
    first = replace(passed(2.0), invoked_at_s=0.0, responded_at_s=1.0)
    beside = replace(passed(1.0), invoked_at_s=0.5, responded_at_s=3.0)
    after = replace(passed(2.0), invoked_at_s=2.0, responded_at_s=4.0)

    assert cycle_violations([first, beside]) == []
    assert len(cycle_violations([first, beside, after])) == 1


def test_only_what_succeeded_is_metered() -> None:
    sequences = [{"tokens": [1, 2]}, {"tokens": [3]}]
    sampled = event(Operation(Kind.SAMPLE, name="a", num_tokens=5), sequences=sequences)

    assert metered([passed(), passed(), Event(PASS, REFUSED), stepped(1), sampled]) == {
        "forward_backward_tokens": 20,
        "prefilled_tokens": 5,
        "sampled_tokens": 3,
    }


def test_a_replay_may_differ_in_ids_and_cycles_only() -> None:
    ours = client("s-1", passed(3.0), saved(), Event(SAVE, REFUSED))
    same = client("s-2", passed(4.0), saved(), Event(SAVE, replace(REFUSED, error="other words")))
    other = client("s-3", passed(4.0), saved(), Event(SAVE, replace(REFUSED, category="server")))
    loss = {"clock_cycle:unique": 4.0, "loss:sum": 1.0 + 2**-52}
    off_by_a_bit = client("s-4", event(PASS, metrics=loss), saved(), Event(SAVE, REFUSED))

    assert differences(ours, same) == []
    assert len(differences(ours, other)) == 1
    assert len(differences(ours, off_by_a_bit)) == 1


def client(session_id: str, *events: Event) -> Client:
    return Client([], [History(session_id, list(events))], {})
