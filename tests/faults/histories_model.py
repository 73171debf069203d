"""What one training run may answer, as a sequential program of a few lines.

A model executes its numbered requests one after the other, so a history of a run is right when this
model, fed with the operations in order of seq_id, could have given every answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from faults.http_client import Outcome


class Kind(StrEnum):
    """What an operation does; the last three kinds fail on purpose or cause it."""

    PASS = "pass"
    FORWARD = "forward"
    STEP = "step"
    SAVE = "save"
    SAVE_SAMPLER = "save_sampler"
    LOAD = "load"
    SAMPLE = "sample"
    """Not numbered with the others: it reads a sampler checkpoint, and changes nothing."""
    INVALID_PASS = "invalid_pass"
    OVERFLOWING_PASS = "overflowing_pass"
    """Succeeds, with a gradient that no step can be taken with."""
    INVALID_STEP = "invalid_step"


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of a training run; fields that its kind has no use for keep their defaults."""

    kind: Kind
    seed: int = 0
    learning_rate: float = 0.0
    name: str = ""
    has_flag: bool = False
    """Of a save: overwrite. Of a load: optimizer."""
    num_tokens: int = 0
    """What a pass meters when it succeeds; of a sample, its prompt's tokens."""


@dataclass(frozen=True, slots=True)
class Event:
    """An operation and what came of it; instants are monotonic."""

    operation: Operation
    outcome: Outcome
    invoked_at_s: float = 0.0
    responded_at_s: float = 0.0

    @property
    def cycle(self) -> float | None:
        """The clock cycle that a pass says it ran in."""
        metrics: Mapping[str, float] = (self.outcome.result or {}).get("metrics") or {}
        return metrics.get("clock_cycle:unique")


@dataclass(frozen=True, slots=True)
class _State:
    """All of a model that decides on answers, apart from numbers that only a replay can tell."""

    num_steps: int = 0
    num_passes: int = 0
    """Accumulated since the last step."""
    is_overflown: bool = False
    cycle: float = -1.0
    saved: Mapping[str, int] = field(default_factory=dict[str, int])
    """Training checkpoints by name, with the number of steps in each."""
    samplers: frozenset[str] = frozenset()


def violations(events: Sequence[Event]) -> list[str]:
    """What no execution in order could have answered; events in order of submission."""
    state = _State()
    found: list[str] = []
    for index, event in enumerate(events):
        state, wrong = _apply(state, event)
        found += [f"operation {index} ({event.operation}): {each}" for each in wrong]
    return found


def _apply(state: _State, event: Event) -> tuple[_State, list[str]]:
    operation = event.operation
    reason = _reason_to_fail(state, operation)
    if not event.outcome.is_done:
        if operation.kind is Kind.STEP and state.is_overflown:
            # The gradient goes with the step that could not be taken.
            state = replace(state, num_passes=0, is_overflown=False)
        return state, _check_failure(event.outcome, reason)
    if reason:
        return state, [f"succeeded although {reason}"]
    result = event.outcome.value()
    match operation.kind:
        case Kind.PASS | Kind.OVERFLOWING_PASS:
            after = replace(
                state,
                num_passes=state.num_passes + 1,
                is_overflown=state.is_overflown or operation.kind is Kind.OVERFLOWING_PASS,
            )
            return _apply_cycle(after, event)
        case Kind.FORWARD:
            return _apply_cycle(state, event)
        case Kind.STEP:
            after = replace(state, num_steps=state.num_steps + 1, num_passes=0)
            return after, _check_step(after.num_steps, state.num_passes, result["metrics"])
        case Kind.SAVE:
            saved = {**state.saved, operation.name: state.num_steps}
            wrong = _check_path(f"/weights/{operation.name}", result)
            return replace(state, saved=saved), wrong
        case Kind.SAVE_SAMPLER:
            wrong = _check_path(f"/sampler_weights/{operation.name}", result)
            return replace(state, samplers=state.samplers | {operation.name}), wrong
        case Kind.LOAD:
            num_steps = state.saved[operation.name] if operation.has_flag else 0
            after = replace(state, num_steps=num_steps, num_passes=0, is_overflown=False)
            return after, _check_path(f"/weights/{operation.name}", result)
        case Kind.SAMPLE:
            return state, [] if result.get("sequences") else ["a sample without sequences"]
        case Kind.INVALID_PASS | Kind.INVALID_STEP:
            raise AssertionError("always has a reason to fail")


def _reason_to_fail(state: _State, operation: Operation) -> str:
    match operation.kind:
        case Kind.INVALID_PASS | Kind.INVALID_STEP:
            return "its body is invalid"
        case Kind.STEP if state.is_overflown:
            return "the gradient is not finite"
        case Kind.SAVE if operation.name in state.saved and not operation.has_flag:
            return "the name exists"
        case Kind.SAVE_SAMPLER if operation.name in state.samplers and not operation.has_flag:
            return "the name exists"
        case Kind.LOAD if operation.name not in state.saved:
            return "the checkpoint does not exist"
        case Kind.SAMPLE if operation.name not in state.samplers:
            return "the checkpoint does not exist"
        case _:
            return ""


def _check_failure(outcome: Outcome, reason: str) -> list[str]:
    if not reason:
        return [f"failed without a reason ({outcome.category}): {outcome.error}"]
    if outcome.category != "user":
        return [f"failed with category {outcome.category!r} although {reason}: {outcome.error}"]
    return []


def _apply_cycle(state: _State, event: Event) -> tuple[_State, list[str]]:
    cycle = event.cycle
    if cycle is None:
        return state, ["no clock cycle"]
    wrong = [f"cycle {cycle} after {state.cycle}"] if cycle < state.cycle else []
    return replace(state, cycle=cycle), wrong


def _check_step(num_steps: int, num_passes: int, metrics: Mapping[str, float]) -> list[str]:
    wrong: list[str] = []
    if metrics["num_steps"] != num_steps:
        wrong.append(f"is step {metrics['num_steps']:g}, expected {num_steps}")
    if (metrics["grad_norm"] == 0.0) != (num_passes == 0):
        wrong.append(f"grad_norm {metrics['grad_norm']} after {num_passes} passes")
    return wrong


def _check_path(expected: str, result: Mapping[str, Any]) -> list[str]:
    path = str(result.get("path"))
    return [] if path.endswith(expected) else [f"answered with path {path}, expected ..{expected}"]


def cycle_violations(events: Sequence[Event]) -> list[str]:
    """Passes, of any runs, whose cycles contradict the order in which they were seen to happen.

    A pass that was asked for after another had answered cannot have run in an earlier cycle.
    """
    passes = [event for event in events if event.cycle is not None]
    found: list[str] = []
    answered = sorted(passes, key=lambda event: event.responded_at_s)
    newest = -1.0
    pending = iter(answered)
    ahead = next(pending, None)
    for event in sorted(passes, key=lambda each: each.invoked_at_s):
        while ahead is not None and ahead.responded_at_s < event.invoked_at_s:
            newest = max(newest, ahead.cycle or 0.0)
            ahead = next(pending, None)
        if (event.cycle or 0.0) <= newest:
            found.append(f"{event.operation} ran in cycle {event.cycle}, after {newest} was seen")
    return found


def metered(events: Sequence[Event]) -> dict[str, int]:
    """Tokens that the operations that succeeded should have been metered with, by kind."""
    usage: dict[str, int] = {}

    def add(name: str, num_tokens: int) -> None:
        usage[name] = usage.get(name, 0) + num_tokens

    for event in events:
        operation = event.operation
        if event.outcome.result is None:
            continue
        match operation.kind:
            case Kind.PASS | Kind.OVERFLOWING_PASS:
                add("forward_backward_tokens", operation.num_tokens)
            case Kind.FORWARD:
                add("forward_tokens", operation.num_tokens)
            case Kind.SAMPLE:
                sequences: list[Any] = event.outcome.result["sequences"]
                add("prefilled_tokens", operation.num_tokens)
                add("sampled_tokens", sum(len(each["tokens"]) for each in sequences))
            case _:
                pass
    return usage
