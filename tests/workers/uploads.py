"""Custom losses as the official SDK traces and encodes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss
from torch import Tensor

from cyclora_core.custom_loss import CustomLoss, LossInput, Node
from cyclora_workers.custom_loss.run import CustomLossRun
from cyclora_workers.sequence_losses import DatumLoss

Rank = Literal[0, 1, 2]


def uploaded(function: Callable[..., Any], ranks: Mapping[str, Rank]) -> CustomLoss:
    """What the server is sent for a function."""
    handle = trace_loss(function, ranks, "session")
    graph = encode_graph(handle)
    return CustomLoss(
        handle.name,
        [LossInput(each.name, each.rank) for each in handle.inputs],
        [Node(n.op, n.name, n.target, n.args, n.kwargs) for n in graph.nodes],
    )


def evaluate(loss: CustomLoss, logprobs: Tensor, **inputs: Tensor) -> DatumLoss:
    return CustomLossRun(loss)(logprobs, inputs, {})
