"""Random graphs: refused as the tenant's mistake or run, within bounds, and never anything else."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cyclora_core.custom_loss import CustomLoss, LossInput, Node
from cyclora_core.custom_loss_program import read_program
from cyclora_core.custom_loss_table import BY_WIRE_NAME, OPERATIONS, Parameter
from cyclora_core.errors import UserError
from cyclora_workers.custom_loss.run import CustomLossRun
from cyclora_workers.sequence_losses import DatumLoss

INPUTS = [LossInput("logprobs", 1), LossInput("y", 1), LossInput("m", 2), LossInput("k", 1)]
VALUES = {
    "y": torch.tensor([0.4, 1.1, -0.6, 0.0, math.inf, math.nan]),
    "m": torch.arange(12.0).reshape(6, 2),
    "k": torch.tensor([0, 5, -1, torch.iinfo(torch.int64).min, 2, 10**6]),
}
LOGPROBS = torch.tensor([-0.3, -1.2, -0.7, -2.1, -0.1, -1.6])
GROWTH_BYTES = 3 * 2**30
"""More than the values of one datum may take, with their gradients; far less than a bomb would."""

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["ref", "tuple", "dict", "slice", "float", "dtype", "device", "x"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=8,
)


def argument(parameter: Parameter, names: list[str]) -> st.SearchStrategy[Any]:
    """Mostly what the parameter takes, sometimes what it does not."""
    refs = st.sampled_from(names).map(lambda name: {"ref": name})
    ints = st.integers(-3, 3) | st.sampled_from([2**31, -(2**31), 2**53, 10**6])
    fitting: dict[str, st.SearchStrategy[Any]] = {
        "tensor": refs,
        "any": refs,
        "operand": refs | ints | st.floats(-9, 9) | st.booleans(),
        "number": ints | st.floats(-9, 9) | st.just({"float": "inf"}),
        "int": ints,
        "bool": st.booleans(),
        "ints": ints | st.lists(ints, max_size=3),
        "shape": ints | refs,
        "tensors": st.lists(refs, min_size=1, max_size=3),
        "index": ints | refs | st.just({"slice": [None, -1, 2]}) | st.lists(ints, max_size=3),
        "dtype": st.sampled_from(["float32", "float64", "int64", "int32", "bool"]).map(
            lambda name: {"dtype": name}
        ),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "rounding": st.sampled_from(["floor", "trunc"]),
        "order": st.sampled_from([1, 2, "fro", {"float": "inf"}]),
    }
    wanted = fitting.get(parameter.kind, st.just(parameter.default))
    return st.one_of([wanted] * 19 + [refs])


@st.composite
def graphs(draw: st.DrawFn) -> CustomLoss:
    """Calls of allowed operations, each on what earlier nodes gave."""
    names = [each.name for each in INPUTS]
    nodes = [Node("placeholder", name, name) for name in names]
    for index in range(draw(st.integers(1, 12))):
        operation = OPERATIONS[draw(st.sampled_from(list(OPERATIONS)))]
        wire_name = draw(st.sampled_from(list(operation.wire_names)))
        args: list[Any] = []
        for parameter in operation.parameters:
            if parameter.is_rest:
                args += draw(st.lists(argument(parameter, names), min_size=1, max_size=3))
            elif parameter.is_required or draw(st.booleans()):
                args.append(draw(argument(parameter, names)))
            else:
                break
        name = f"n{index}"
        if wire_name.startswith("@"):
            nodes.append(Node("call_function", name, "getattr", [*args[:1], wire_name[1:]]))
        elif wire_name.startswith("."):
            nodes.append(Node("call_method", name, wire_name[1:], args))
        else:
            nodes.append(Node("call_function", name, wire_name, args))
        names.append(name)
    total = [
        Node("call_method", "s", "sum", [{"ref": names[-1]}]),
        Node("call_method", "p", "sum", [{"ref": "logprobs"}]),
        Node("call_function", "loss", "operator.add", [{"ref": "s"}, {"ref": "p"}]),
    ]
    last = [{"tuple": [{"ref": "loss"}, {"dict": {"custom/a:sum": {"ref": "s"}}}]}]
    return CustomLoss("fuzz", INPUTS, [*nodes, *total, Node("output", "output", "output", last)])


def outcome(loss: CustomLoss) -> DatumLoss | str:
    """What one datum gives, or why it was refused; anything else that is raised is our fault."""
    try:
        return CustomLossRun(loss)(LOGPROBS, VALUES, {})
    except UserError as error:
        return str(error)


def complaint(loss: CustomLoss) -> str:
    try:
        read_program(loss)
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=400, deadline=None, suppress_health_check=SLOW)
@given(graphs())
def test_a_graph_of_allowed_operations_runs_or_is_the_tenants_mistake(loss: CustomLoss) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.perf_counter()

    found = outcome(loss)

    if isinstance(found, DatumLoss):
        assert found.loss.isfinite()
        assert found.coefficient.isfinite().all()
        assert found.coefficient.shape == LOGPROBS.shape
    else:
        assert "fuzz" in found
        assert len(found) < 1000
    assert time.perf_counter() - started_s < 20.0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH_BYTES


@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
@given(
    st.lists(
        st.builds(
            Node,
            st.sampled_from(["placeholder", "call_function", "call_method", "output", "get_attr"]),
            st.sampled_from(["a", "b", "c", "logprobs", "", "output"]),
            st.sampled_from([*BY_WIRE_NAME, "getattr", "sum", "torch.load", "output", "logprobs"]),
            st.lists(JSON, max_size=3),
            st.dictionaries(st.text(max_size=5), JSON, max_size=2),
        ),
        max_size=5,
    )
)
def test_a_graph_of_anything_is_read_or_refused(nodes: list[Node]) -> None:
    first = Node("placeholder", "logprobs", "logprobs")
    last = Node("output", "output", "output", [[{"ref": "logprobs"}, {"dict": {}}]])
    for graph in ([first, *nodes, last], nodes):
        assert len(complaint(CustomLoss("fuzz", INPUTS[:1], graph))) < 1000
