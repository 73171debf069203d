"""What a custom loss may consist of: hostile graphs are refused, by node and reason."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from core.losses import call, custom_loss, method, output, ref
from cyclora_core.custom_loss import MAX_NODES, CustomLoss, LossInput, Node
from cyclora_core.custom_loss_arguments import MAX_INTEGER, Ref, Slice
from cyclora_core.custom_loss_program import read_program
from cyclora_core.errors import UserError

LP = ref("logprobs")
SUM = method("total", "sum", LP)


def refused(loss: CustomLoss, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_program(loss)


def test_a_loss_is_bound_to_the_table() -> None:
    loss = custom_loss(
        call("part", "operator.getitem", LP, {"slice": [1, None, None]}),
        method("total", "sum", ref("part"), axis=0),
        last=output(ref("total"), **{"custom/kl:mean": ref("part")}),
    )

    program = read_program(loss)

    getitem, total = program.steps
    assert (getitem.operation.name, total.operation.name) == ("getitem", "sum")
    assert list(getitem.arguments) == [Ref("logprobs"), Slice(1, None, None)]
    assert list(total.arguments) == [Ref("part"), 0, False, None]
    assert (program.loss, program.metrics) == ("total", {"custom/kl:mean": "part"})


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.ops.aten.add",
        "torch.ops.load_library",
        "torch.utils.cpp_extension.load",
        "torch.jit.load",
        "torch.from_file",
        "torch.classes",
        "torch.rand_like",
        "torch.nn.functional.dropout",
        "torch.zeros",
        "torch.einsum",
        "torch.cumprod",
        "torch.set_default_dtype",
        "torch.manual_seed",
        "torch.Tensor.backward",
        "math.factorial",
        "math.comb",
        "operator.iadd",
        "operator.setitem",
        "operator.lshift",
        "operator.attrgetter",
        "operator.methodcaller",
        "builtins.eval",
        "os.system",
        "eval",
        "__import__",
        "getattr.__call__",
        ".sum",
        "@shape",
        "",
        "torch.exp ",
        "Torch.exp",
        "x" * 100_000,
    ],
)
def test_a_function_outside_of_the_table_does_not_exist(target: str) -> None:
    refused(custom_loss(call("bad", target, LP)), "node 'bad'.* not one of the operations allowed")


@pytest.mark.parametrize(
    "name", ["backward", "add_", "__class__", "numpy", "item", "register_hook", "random_", "data"]
)
def test_a_method_outside_of_the_table_does_not_exist(name: str) -> None:
    refused(custom_loss(method("bad", name, LP)), "node 'bad'.* not one of the operations allowed")


@pytest.mark.parametrize(
    "name", ["__class__", "__dict__", "grad_fn", "data", "grad", "_backward_hooks", "storage", ""]
)
def test_an_attribute_outside_of_the_table_does_not_exist(name: str) -> None:
    refused(custom_loss(call("bad", "getattr", LP, name)), "not one of the operations allowed")


def test_the_attribute_to_read_must_be_written() -> None:
    refused(custom_loss(call("bad", "getattr", LP, LP)), "getattr takes a node and the name of")
    refused(custom_loss(call("bad", "getattr", LP)), "getattr takes a node and the name of")


def test_a_refusal_names_what_is_similar() -> None:
    refused(custom_loss(call("bad", "torch.exq", LP)), r"torch\.exp, .*docs/custom-losses\.md")


@pytest.mark.parametrize("op", ["call_module", "get_attr", "placeholder", "output", "exec"])
def test_only_calls_stand_between_the_placeholders_and_the_output(op: str) -> None:
    refused(
        custom_loss(SUM, Node(op, "bad", "weight"), last=output(ref("total"))), "is not allowed"
    )


@pytest.mark.parametrize("target", ["logprobs", "bad", "later", "output", "nowhere"])
def test_a_node_refers_to_earlier_nodes_only(target: str) -> None:
    """So there are no cycles, and nothing is looked up anywhere else."""
    bad = method("bad", "sum", ref(target))
    loss = custom_loss(bad, method("later", "sum", LP))
    if target == "logprobs":
        read_program(loss)
    else:
        refused(loss, f"it refers to '{target}', which is no earlier node")


def test_two_nodes_of_one_name_are_refused() -> None:
    refused(custom_loss(SUM, SUM), "two nodes are named 'total'")
    refused(custom_loss(method("logprobs", "sum", LP)), "two nodes are named 'logprobs'")


@pytest.mark.parametrize("name", ["", "a b", "1a", "a" * 129, "é"])
def test_a_node_has_a_plain_name(name: str) -> None:
    refused(custom_loss(method(name, "sum", LP)), "must have a name of at most 128 letters")


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        (call("bad", "torch.exp"), "it lacks argument 'input'"),
        (call("bad", "torch.exp", LP, LP), "it takes at most 1 arguments"),
        (call("bad", "torch.exp", LP, out=LP), "argument 'out' is unknown or given twice"),
        (call("bad", "torch.exp", LP, input=LP), "argument 'input' is unknown or given twice"),
        (call("bad", "torch.exp", 1.0), "argument 'input' is 1.0; expected tensor"),
        (call("bad", "operator.mul", LP, "a" * 9), "'other' is aaaaaaaaa; expected operand"),
        (call("bad", "operator.mul", LP, [0]), "'other' is a list of 1; expected operand"),
        (call("bad", "operator.mul", [0], 2**40), "'input' is a list of 1; expected operand"),
        (call("bad", "operator.mul", "a", 2**40), "'input' is a; expected operand"),
        (method("bad", "sum", LP, 1.5), "'dim' is 1.5; expected ints"),
        (method("bad", "sum", LP, True), "'dim' is True; expected ints"),
        (method("bad", "sum", LP, keepdim=1), "'keepdim' is 1; expected bool"),
        (
            method("bad", "to", LP, {"dtype": "complex64"}),
            "dtype 'complex64' is not one of float32",
        ),
        (method("bad", "to", LP, {"dtype": "float16"}), "dtype 'float16' is not one of"),
        (method("bad", "to", LP, {"device": "meta"}), "'device' is no known form of argument"),
        (method("bad", "to", LP, "privateuseone"), "expected conversion"),
        (
            method("bad", "to", LP, memory_format={"memory_format": "channels_last"}),
            "no known form",
        ),
        (call("bad", "torch.zeros_like", LP, layout={"layout": "sparse_coo"}), "no known form"),
        (call("bad", "torch.nn.functional.relu", LP, inplace=True), "expected off"),
        (call("bad", "torch.nn.functional.mse_loss", LP, LP, reduction="x"), "expected reduction"),
        (call("bad", "torch.cat", []), "'tensors' is a list of 0; expected tensors"),
        (method("bad", "view", LP), r"'shape' is a list of 0; expected shape"),
        (method("bad", "view", LP, {"dtype": "int64"}), "expected shape"),
        (call("bad", "operator.getitem", LP, 0.5), "'index' is 0.5; expected index"),
        (call("bad", "operator.getitem", LP, {"tuple": [{"tuple": [0]}]}), "expected index"),
        (call("bad", "operator.mul", LP, 2**53 + 1), f"beyond the accepted {MAX_INTEGER}"),
        (call("bad", "operator.mul", LP, float("inf")), "infinities and NaN are written"),
        (call("bad", "operator.mul", LP, {"float": "1e999"}), "'float' is no known form"),
        (call("bad", "operator.mul", LP, {"ref": "logprobs", "x": 1}), "one known key"),
        (call("bad", "operator.mul", LP, {}), "one known key"),
        (call("bad", "operator.mul", LP, {"eval": "1"}), "'eval' is no known form"),
        (call("bad", "operator.mul", LP, {"slice": [1]}), "'slice' is no known form"),
        (call("bad", "operator.mul", LP, {"dict": {}}), "expected operand"),
        (call("bad", "torch.cat", [LP] * 257), "a list has 257 entries; at most 256"),
        (call("bad", "torch.cat", [[[[[[LP]]]]]]), "nested deeper than 4 levels"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(node: Node, complaint: str) -> None:
    refused(custom_loss(node), rf"custom loss 'hand': node 'bad' \(.*\): .*{complaint}")


def nested(depth: int) -> Any:
    value: Any = LP
    for _ in range(depth):
        value = {"tuple": [value]}
    return value


def test_depth_is_bounded_however_it_is_made() -> None:
    value: Any = LP
    for _ in range(500):
        value = {"slice": [value, None, None]}
    for bomb in (nested(500), value, {"dict": {"a": nested(500)}}):
        refused(custom_loss(call("bad", "torch.exp", bomb)), "nested deeper|no known form")


def test_a_million_nodes_are_refused_without_being_read() -> None:
    loss = custom_loss(*[SUM] * 1_000_000)

    started_s = time.perf_counter()
    refused(loss, f"it has 1000002 nodes; at most {MAX_NODES} are accepted")

    assert time.perf_counter() - started_s < 1.0


@pytest.mark.parametrize(
    ("last", "complaint"),
    [
        (Node("output", "output", "output"), "its output must be"),
        (Node("output", "output", "output", [LP]), "its output must be"),
        (Node("output", "output", "output", [{"tuple": [LP]}]), "its output must be"),
        (
            Node("output", "output", "output", [{"tuple": [1.0, {"dict": {}}]}]),
            "its output must be",
        ),
        (Node("output", "output", "output", [{"tuple": [LP, LP]}]), "its output must be"),
        (output(ref("nowhere")), "refers to 'nowhere'"),
        (output(LP, **{"loss:sum": LP}), "metric 'loss:sum' must be named custom/"),
        (output(LP, **{"custom/A:sum": LP}), "must be named"),
        (output(LP, **{"custom/:sum": LP}), "must be named"),
        (output(LP, **{f"custom/{'a' * 65}:sum": LP}), "must be named"),
        (output(LP, **{"custom/a:max": LP}), "must be named"),
        (output(LP, **{"custom/a:sum:mean": LP}), "must be named"),
        (output(LP, **{"custom/a:sum\n": LP}), "must be named"),
        (output(LP, **{"custom/a:sum": 1.0}), "metric 'custom/a:sum' must be a node"),
        (output(LP, **{f"custom/{i}:sum": LP for i in range(65)}), "65 metrics; at most 64"),
        (SUM, "must have a placeholder for each input and end with an output"),
    ],
)
def test_an_output_of_another_form_is_refused(last: Node, complaint: str) -> None:
    refused(custom_loss(last=last), complaint)


def test_a_pair_may_be_written_as_a_list() -> None:
    last = Node("output", "output", "output", [[LP, {"dict": {}}]])

    assert read_program(custom_loss(last=last)).loss == "logprobs"


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ([], "it has 0 inputs"),
        ([LossInput("advantages", 1)], "logprobs first"),
        ([LossInput("logprobs", 0)], "rank 0; expected 1 to 2"),
        ([LossInput("logprobs", 3)], "rank 3; expected 1 to 2"),
        ([LossInput("logprobs", 1), LossInput("a", 3)], "rank 3; expected 0 to 2"),
        ([LossInput("logprobs", 1), LossInput("a", -1)], "rank -1"),
        ([LossInput("logprobs", 1), LossInput("A", 1)], "must be a lower-case name"),
        ([LossInput("logprobs", 1), LossInput("__class__é", 1)], "must be a lower-case name"),
        ([LossInput("logprobs", 1), LossInput("logprobs", 1)], "the same name"),
        ([LossInput("logprobs", 1), *(LossInput(f"i{i}", 1) for i in range(16))], "17 inputs"),
    ],
)
def test_inputs_of_another_form_are_refused(inputs: list[LossInput], complaint: str) -> None:
    nodes = [Node("placeholder", f"p{i}", each.name) for i, each in enumerate(inputs)]
    refused(CustomLoss("hand", inputs, [*nodes, output(ref("p0"))]), complaint)


@pytest.mark.parametrize(
    "change",
    [
        {"target": "advantages"},
        {"op": "call_function"},
        {"args": [0.5]},
        {"kwargs": {"default": 1}},
    ],
)
def test_a_placeholder_stands_for_its_input_without_a_default(change: dict[str, Any]) -> None:
    loss = custom_loss(SUM)
    nodes = [dataclasses.replace(loss.nodes[0], **change), *loss.nodes[1:]]

    refused(dataclasses.replace(loss, nodes=nodes), "must be the placeholder of input 'logprobs'")


def test_long_names_are_cut_in_messages() -> None:
    loss = dataclasses.replace(custom_loss(call("bad", "x" * 5000, LP)), name="n" * 5000)

    with pytest.raises(UserError) as caught:
        read_program(loss)

    assert len(str(caught.value)) < 500
