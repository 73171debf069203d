"""From an uploaded graph to a program: every name, argument and reference checked, nothing run.

What a program may do is decided here, without torch, so that an upload is refused at once. What
depends on a datum (shapes, dtypes, sizes, time) is checked by the worker that runs it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cyclora_core.custom_loss import (
    LOGPROBS,
    MAX_INPUTS,
    MAX_METRICS,
    MAX_NAME_CHARS,
    MAX_NODES,
    CustomLoss,
    Node,
)
from cyclora_core.custom_loss_arguments import PAGE, Ref, as_items, bind, decode, shown
from cyclora_core.custom_loss_table import BY_WIRE_NAME, Operation
from cyclora_core.errors import UserError

_MAX_SHOWN = 60
_INPUT_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")


@dataclass(frozen=True, slots=True)
class Step:
    """One call: an argument per parameter of the operation, in order.

    Arguments are numbers, booleans, None, strings, the classes above, and tuples of them.
    """

    name: str
    operation: Operation
    arguments: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Program:
    """A custom loss that may be run."""

    loss_name: str
    placeholders: Sequence[str]
    """The nodes that stand for the inputs, in the inputs' order."""
    steps: Sequence[Step]
    loss: str
    metrics: Mapping[str, str]
    """The node of each metric by its key."""


def read_program(loss: CustomLoss) -> Program:
    """Check a custom loss and bind its calls to the table of operations.

    Raises:
        UserError: with the first thing that is wrong, the node it is in, and what is allowed.
    """
    try:
        return _Reader(loss).read()
    except UserError as error:
        raise UserError(f"custom loss {loss.name[:_MAX_SHOWN]!r}: {error}") from None


class _Reader:
    """Goes over the nodes once, and knows only those before: so there is no cycle."""

    def __init__(self, loss: CustomLoss) -> None:
        self._loss = loss
        self._known: set[str] = set()

    def read(self) -> Program:
        nodes, num_inputs = self._loss.nodes, len(self._loss.inputs)
        self._check_inputs()
        if len(nodes) > MAX_NODES:
            raise UserError(f"it has {len(nodes)} nodes; at most {MAX_NODES} are accepted")
        if len(nodes) < num_inputs + 1 or nodes[-1].op != "output":
            raise UserError("it must have a placeholder for each input and end with an output node")
        for node, each in zip(nodes, self._loss.inputs, strict=False):
            if node.op != "placeholder" or node.target != each.name or node.args or node.kwargs:
                raise UserError(
                    f"node {shown(node.name)} must be the placeholder of input {each.name!r}, "
                    "without a default; placeholders come first, in the order of the inputs"
                )
            self._add(node)
        steps = [self._step(node) for node in nodes[num_inputs:-1]]
        self._add(nodes[-1])
        output, metrics = self._output(nodes[-1])
        placeholders = [node.name for node in nodes[:num_inputs]]
        return Program(self._loss.name, placeholders, steps, output, metrics)

    def _check_inputs(self) -> None:
        inputs = self._loss.inputs
        if len(self._loss.name) > MAX_NAME_CHARS:
            raise UserError(f"its name is longer than {MAX_NAME_CHARS} characters")
        if not 1 <= len(inputs) <= MAX_INPUTS or inputs[0].name != LOGPROBS:
            raise UserError(
                f"it has {len(inputs)} inputs; expected 1 to {MAX_INPUTS}, {LOGPROBS} first"
            )
        for each in inputs:
            if not _INPUT_NAME.fullmatch(each.name):
                raise UserError(
                    f"input {shown(each.name)} must be a lower-case name of at most 64 letters, "
                    "digits and underscores"
                )
            least = 1 if each is inputs[0] else 0
            if not least <= each.rank <= 2:
                raise UserError(f"input {each.name!r} has rank {each.rank}; expected {least} to 2")
        if len({each.name for each in inputs}) != len(inputs):
            raise UserError("two of its inputs have the same name")

    def _add(self, node: Node) -> None:
        if not _NODE_NAME.fullmatch(node.name):
            raise UserError(
                f"node {shown(node.name)} must have a name of at most 128 letters, digits and "
                "underscores"
            )
        if node.name in self._known:
            raise UserError(f"two nodes are named {shown(node.name)}")
        self._known.add(node.name)

    def _step(self, node: Node) -> Step:
        where = f"node {shown(node.name)} ({shown(node.target)})"
        try:
            positional = [decode(each, self._known) for each in node.args]
            keywords = {name: decode(each, self._known) for name, each in node.kwargs.items()}
            wire_name, positional = _wire_name(node, positional)
            operation = BY_WIRE_NAME.get(wire_name)
            if operation is None:
                raise UserError(
                    f"it is not one of the operations allowed here{_similar(wire_name)}"
                )
            step = Step(node.name, operation, bind(operation, positional, keywords))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self._add(node)
        return step

    def _output(self, node: Node) -> tuple[str, dict[str, str]]:
        returned = decode(node.args[0], self._known, depth=-1) if len(node.args) == 1 else None
        items = as_items(returned) or ()
        loss, metrics = items if len(items) == 2 else (None, None)
        if not isinstance(loss, Ref) or not isinstance(metrics, dict):
            raise UserError(
                "its output must be (loss, metrics), the loss a node and metrics a dict"
            )
        found: dict[str, Any] = metrics
        if len(found) > MAX_METRICS:
            raise UserError(f"it has {len(found)} metrics; at most {MAX_METRICS} are accepted")
        names: dict[str, str] = {}
        for key, value in found.items():
            if not _METRIC.fullmatch(key):
                raise UserError(
                    f"metric {shown(key)} must be named custom/<name>:sum or custom/<name>:mean, "
                    "the name 1 to 64 characters of a-z 0-9 _ . / -"
                )
            if not isinstance(value, Ref):
                raise UserError(f"metric {shown(key)} must be a node")
            names[key] = value.name
        return loss.name, names


def _wire_name(node: Node, positional: list[Any]) -> tuple[str, list[Any]]:
    """What the table calls it; the attribute that ``getattr`` reads is part of the name."""
    if node.op == "call_method":
        return f".{node.target}", positional
    if node.op != "call_function":
        raise UserError(
            f"op {shown(node.op)} is not allowed; a loss consists of placeholders, "
            "call_function, call_method and one output"
        )
    if node.target != "getattr":
        # Methods and attributes are told from functions by their first character.
        return node.target if node.target[:1] not in (".", "@") else "", positional
    if len(positional) != 2 or not isinstance(positional[1], str):
        raise UserError("getattr takes a node and the name of an attribute")
    return f"@{positional[1]}", positional[:1]


def _similar(wire_name: str) -> str:
    close = difflib.get_close_matches(wire_name[:_MAX_SHOWN], BY_WIRE_NAME, n=3)
    return f"; similar are {', '.join(close)}, and {PAGE}" if close else f"; {PAGE}"
