"""Random training runs: the same seed makes the same requests, whenever it is played."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from faults import http_requests
from faults.histories_model import Kind, Operation
from faults.http_requests import OVERFLOW, Request, datum

PROGRAM_LENGTH = 30

_NAMES = ("a", "b", "c")
"""Few, so that saves often meet a name that exists."""

_FREQUENCIES = {
    Kind.PASS: 30,
    Kind.STEP: 24,
    Kind.FORWARD: 6,
    Kind.SAVE: 9,
    Kind.SAVE_SAMPLER: 6,
    Kind.LOAD: 9,
    Kind.SAMPLE: 8,
    Kind.INVALID_PASS: 5,
    Kind.OVERFLOWING_PASS: 4,
    Kind.INVALID_STEP: 4,
}
_LEARNING_RATES = (1e-4, 1e-3, 1e-2, 3e-2)


@dataclass(frozen=True, slots=True)
class Action:
    """What a client does next."""

    operation: Operation
    awaits_all: bool
    """Whether it wants all earlier results first."""
    again: int | None
    """An action whose request it sends once more afterwards; this one or an earlier one."""


def random_program(seed: str) -> list[Action]:
    """One training run's worth of actions."""
    rng = random.Random(seed)
    actions: list[Action] = []
    has_saved: set[str] = set()
    has_sampler: set[str] = set()
    for index in range(PROGRAM_LENGTH):
        (kind,) = rng.choices(list(_FREQUENCIES), list(_FREQUENCIES.values()))
        if kind is Kind.SAMPLE and not has_sampler:
            kind = Kind.SAVE_SAMPLER
        operation = _random_operation(rng, kind, has_saved, has_sampler)
        if kind is Kind.SAVE:
            has_saved.add(operation.name)
        elif kind is Kind.SAVE_SAMPLER:
            has_sampler.add(operation.name)
        again = rng.randint(0, index) if rng.random() < 0.25 else None
        actions.append(Action(operation, _must_await(operation) or rng.random() < 0.15, again))
    return actions


def _random_operation(
    rng: random.Random, kind: Kind, has_saved: set[str], has_sampler: set[str]
) -> Operation:
    seed = rng.randrange(1 << 30)
    name = rng.choice(_NAMES)
    has_flag = rng.random() < 0.4
    match kind:
        case Kind.PASS | Kind.FORWARD | Kind.OVERFLOWING_PASS:
            num_tokens = sum(_lengths(seed))
            return Operation(kind, seed=seed, num_tokens=num_tokens)
        case Kind.INVALID_PASS:
            return Operation(kind, seed=seed)
        case Kind.STEP:
            return Operation(kind, learning_rate=rng.choice(_LEARNING_RATES))
        case Kind.INVALID_STEP:
            return Operation(kind, learning_rate=-1.0)
        case Kind.SAVE | Kind.SAVE_SAMPLER:
            return Operation(kind, name=name, has_flag=has_flag)
        case Kind.LOAD:
            is_known = bool(has_saved) and rng.random() < 0.85
            name = rng.choice(sorted(has_saved)) if is_known else "missing"
            return Operation(kind, name=name, has_flag=rng.random() < 0.6)
        case Kind.SAMPLE:
            name = rng.choice(sorted(has_sampler))
            return Operation(kind, seed=seed, name=name, num_tokens=PROMPT_TOKENS)


def _must_await(operation: Operation) -> bool:
    """Loads and samples name what must be there; replacing waits for those who may still read."""
    replaces_sampler = operation.kind is Kind.SAVE_SAMPLER and operation.has_flag
    return operation.kind in (Kind.LOAD, Kind.SAMPLE) or replaces_sampler


def _lengths(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(4, 24) for _ in range(rng.randint(1, 4))]


PROMPT_TOKENS = len(http_requests.PROMPT)


def numbered_request(operation: Operation, model_id: str, seq_id: int) -> Request:
    """The request of anything but a sample."""
    seed, name = operation.seed, operation.name
    match operation.kind:
        case Kind.PASS:
            return http_requests.forward_backward(model_id, seq_id, _data(seed))
        case Kind.OVERFLOWING_PASS:
            return http_requests.forward_backward(model_id, seq_id, _data(seed, OVERFLOW))
        case Kind.INVALID_PASS:
            return http_requests.forward_backward(model_id, seq_id, _invalid_data(seed))
        case Kind.FORWARD:
            return http_requests.forward(model_id, seq_id, _data(seed))
        case Kind.STEP | Kind.INVALID_STEP:
            return http_requests.optim_step(model_id, seq_id, operation.learning_rate)
        case Kind.SAVE:
            return http_requests.save_weights(model_id, seq_id, name, operation.has_flag)
        case Kind.SAVE_SAMPLER:
            return http_requests.save_sampler(model_id, seq_id, name, operation.has_flag)
        case Kind.LOAD:
            return http_requests.load_weights(model_id, seq_id, name, operation.has_flag)
        case Kind.SAMPLE:
            raise AssertionError("a sample belongs to its sampling session")


def _data(seed: int, weight: float = 1.0) -> Sequence[object]:
    return [datum(n, seed + i, weight) for i, n in enumerate(_lengths(seed))]


def _invalid_data(seed: int) -> Sequence[object]:
    """Data with a token that does not exist, or without its loss weights, or none."""
    match seed % 3:
        case 0:
            chunk = {"type": "encoded_text", "tokens": [10**6]}
            return [datum(1, seed) | {"model_input": {"chunks": [chunk]}}]
        case 1:
            return [*_data(seed), datum(4, seed) | {"loss_fn_inputs": {}}]
        case _:
            return []
