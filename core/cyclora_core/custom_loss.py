"""Losses that tenants upload: a traced function as plain data, and the bounds of one.

Nothing here is executable. ``custom_loss_program`` checks a graph against the table of allowed
operations; only the worker has functions for these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from cyclora_core.errors import UserError
from cyclora_core.payload import Array

LOGPROBS = "logprobs"
"""The first input of every custom loss: the target tokens' logprobs, which it differentiates."""

MAX_UPLOAD_BYTES = 256 * 1024
"""Bound on an upload as received; a loss of 200 operations takes about 20 KiB."""

MAX_INPUTS = 16
MAX_NODES = 512
MAX_METRICS = 64
MAX_NAME_CHARS = 200

MAX_VALUE_ELEMENTS = 2**23
"""Elements of one value while a loss runs: 64 MiB of the largest dtype."""

MAX_TOTAL_ELEMENTS = 2**26
"""Elements of all values of one datum together, since autograd may keep each of them."""


@dataclass(frozen=True, slots=True)
class LossInput:
    """One input: ``logprobs``, or the ``loss_fn_inputs`` key that the loss reads."""

    name: str
    rank: int
    """0 is a scalar, 1 is ``[T]`` and 2 is ``[T, K]``."""


@dataclass(frozen=True, slots=True)
class Node:
    """One step of the graph as it was sent; ``args`` and ``kwargs`` are encoded JSON values."""

    op: str
    name: str
    target: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """A traced loss function: its inputs, ``logprobs`` first, and its nodes in execution order."""

    name: str
    inputs: Sequence[LossInput]
    nodes: Sequence[Node]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            value["name"],
            [LossInput(**each) for each in value["inputs"]],
            [Node(**each) for each in value["nodes"]],
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def input_keys(self) -> frozenset[str]:
        """The ``loss_fn_inputs`` that each datum must have."""
        return frozenset({"target_tokens", *(each.name for each in self.inputs[1:])})


def check_datum(where: str, inputs: Mapping[str, Array], loss: CustomLoss) -> None:
    """Refuse a datum that lacks an input, or has one of another rank than the loss declared.

    A scalar is sent as a tensor of one element, because the wire has no rank 0.

    Raises:
        UserError: with the first thing that is wrong.
    """
    if missing := loss.input_keys - inputs.keys():
        raise UserError(
            f"{where} lacks loss_fn_inputs {', '.join(sorted(missing))}, which custom loss "
            f"{loss.name!r} takes"
        )
    _check_rank(f"{where}.target_tokens", inputs["target_tokens"], loss.inputs[0], loss)
    for each in loss.inputs[1:]:
        _check_rank(f"{where}.{each.name}", inputs[each.name], each, loss)


def _check_rank(where: str, value: Array, declared: LossInput, loss: CustomLoss) -> None:
    fits = value.size == 1 if declared.rank == 0 else value.ndim == declared.rank
    if not fits:
        expected = "one element" if declared.rank == 0 else f"rank {declared.rank}"
        raise UserError(
            f"{where} has shape {list(value.shape)}, but custom loss {loss.name!r} declared "
            f"{declared.name} with rank {declared.rank}; expected {expected}"
        )
    if math.prod(value.shape) > MAX_VALUE_ELEMENTS:
        raise UserError(
            f"{where} has {value.size} elements; a custom loss takes at most {MAX_VALUE_ELEMENTS}"
        )
