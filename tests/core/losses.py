"""Graphs of custom losses written by hand, as no SDK would send some of them."""

from __future__ import annotations

from typing import Any

from cyclora_core.custom_loss import CustomLoss, LossInput, Node


def ref(name: str) -> dict[str, str]:
    return {"ref": name}


def call(name: str, target: str, *args: Any, **kwargs: Any) -> Node:
    return Node("call_function", name, target, list(args), kwargs)


def method(name: str, target: str, *args: Any, **kwargs: Any) -> Node:
    return Node("call_method", name, target, list(args), kwargs)


def output(loss: Any, **metrics: Any) -> Node:
    return Node("output", "output", "output", [{"tuple": [loss, {"dict": metrics}]}])


def custom_loss(*nodes: Node, last: Node | None = None, **ranks: int) -> CustomLoss:
    """A loss of ``logprobs`` and other inputs; without ``last``, the last node is what it gives."""
    inputs = [LossInput("logprobs", 1), *(LossInput(name, rank) for name, rank in ranks.items())]
    placeholders = [Node("placeholder", each.name, each.name, []) for each in inputs]
    end = last or output(ref(nodes[-1].name))
    return CustomLoss("hand", inputs, [*placeholders, *nodes, end])
