"""One datum through a custom loss: bounded in size and time, and every failure is the tenant's."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.losses import call, custom_loss, method, output, ref
from cyclora_core.custom_loss import MAX_TOTAL_ELEMENTS, MAX_VALUE_ELEMENTS, Node
from cyclora_core.errors import UserError
from cyclora_workers.custom_loss.bounds import TimeLimit
from cyclora_workers.custom_loss.run import CustomLossRun
from cyclora_workers.sequence_losses import DatumLoss
from workers.uploads import evaluate, uploaded

LP = ref("logprobs")
X = torch.tensor([-0.5, -1.5, -2.5])


def run(*nodes: Node, logprobs: Tensor = X, last: Node | None = None, **inputs: Any) -> DatumLoss:
    """A loss written by hand; inputs have rank 1."""
    loss = custom_loss(*nodes, last=last, **dict.fromkeys(inputs, 1))
    return evaluate(loss, logprobs, **inputs)


def refused(complaint: str, *nodes: Node, **options: Any) -> None:
    with pytest.raises(UserError, match=complaint):
        run(*nodes, **options)


def test_a_loss_gives_its_value_gradient_and_metrics() -> None:
    def loss(logprobs: Any, advantages: Any, beta: Any) -> Any:
        ratio = torch.exp(logprobs - logprobs.detach())
        total = -(ratio * advantages).sum() * beta
        return total, {"custom/n:sum": advantages.sum(), "custom/shape:mean": ratio.max()}

    found = evaluate(
        uploaded(loss, {"logprobs": 1, "advantages": 1, "beta": 0}),
        X,
        advantages=torch.tensor([1.0, 2.0, 3.0]),
        beta=torch.tensor([0.5]),
    )

    assert found.loss.item() == -3.0
    assert found.coefficient.tolist() == [-0.5, -1.0, -1.5]
    assert {key: value.item() for key, value in found.metrics.items()} == {
        "custom/n:sum": 6.0,
        "custom/shape:mean": 1.0,
    }


def test_a_loss_of_several_targets_gets_them_all() -> None:
    def loss(logprobs: Any, weights: Any) -> Any:
        return -(torch.logsumexp(logprobs, 1) * weights[:, 0]).sum(), {}

    logprobs, weights = torch.randn(5, 3), torch.rand(5, 2)
    leaf = logprobs.clone().requires_grad_()
    loss(leaf, weights)[0].backward()

    found = evaluate(uploaded(loss, {"logprobs": 2, "weights": 2}), logprobs, weights=weights)

    torch.testing.assert_close(found.coefficient, leaf.grad)


def test_without_grad_mode_there_is_a_loss_but_no_gradient() -> None:
    loss = custom_loss(method("total", "sum", LP))

    with torch.no_grad():
        found = evaluate(loss, X)

    assert found.loss.item() == -4.5
    assert found.coefficient.tolist() == [0.0] * 3


def test_inputs_stay_as_they_were() -> None:
    logprobs, y = X.clone(), X.clone()

    run(
        call("a", "operator.mul", LP, ref("y")),
        method("total", "sum", ref("a")),
        logprobs=logprobs,
        y=y,
    )

    assert torch.equal(logprobs, X)
    assert torch.equal(y, X)
    assert not logprobs.requires_grad


def test_repeated_indices_have_their_gradient_summed_in_one_order() -> None:
    """Torch sums them as its threads come by, from some thousand elements on."""
    generator = torch.Generator().manual_seed(1)
    logprobs = torch.randn(50_000, generator=generator)
    y = torch.randn(50_000, generator=generator)
    index = torch.randint(0, 7, (50_000,), generator=generator)
    loss = custom_loss(
        call("chosen", "operator.getitem", LP, ref("index")),
        call("part", "operator.mul", ref("chosen"), ref("y")),
        method("total", "sum", ref("part")),
        index=1,
        y=1,
    )

    gradients = [evaluate(loss, logprobs, index=index, y=y).coefficient for _ in range(5)]

    assert all(torch.equal(each, gradients[0]) for each in gradients)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("offset", range(4))
def test_where_the_logprobs_lie_in_memory_changes_no_bit(offset: int) -> None:
    def loss(logprobs: Any, y: Any) -> Any:
        return functional.logsigmoid(logprobs @ y) + logprobs.exp().sum(), {}

    generator = torch.Generator().manual_seed(2)
    memory = torch.randn(1100, generator=generator)
    y = torch.randn(1001, generator=generator)
    uploaded_loss = uploaded(loss, {"logprobs": 1, "y": 1})
    expected = evaluate(uploaded_loss, memory[:1001].clone(), y=y)
    memory[offset : offset + 1001] = memory[:1001].clone()

    found = evaluate(uploaded_loss, memory[offset : offset + 1001], y=y)

    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.coefficient, expected.coefficient)


@pytest.mark.parametrize(
    ("nodes", "complaint"),
    [
        ([call("l", "torch.exp", LP)], r"its loss is float32 \[3\]; expected a float tensor"),
        (
            [call("l", "operator.getitem", LP, {"slice": [0, 1, None]})],
            r"its loss is float32 \[1\]",
        ),
        ([method("l", "size", LP, 0)], "its loss is the number 3; expected a tensor"),
        ([call("l", "getattr", LP, "shape")], "its loss is a tuple; expected a tensor"),
        ([call("l", "getattr", LP, "dtype")], "its loss is a dtype; expected a tensor"),
        ([method("l", "argmax", LP)], r"its loss is int64 \[\]; expected a float tensor"),
        ([method("s", "sum", LP), call("l", "torch.log", ref("s"))], "its loss is nan"),
        (
            [method("s", "sum", LP), call("l", "operator.truediv", ref("s"), 0)],
            "its loss is -inf; expected a finite number",
        ),
        (
            [method("d", "detach", LP), method("l", "sum", ref("d"))],
            "does not depend on logprobs",
        ),
        (
            [
                call("z", "operator.mul", LP, 0.0),
                call("r", "torch.sqrt", ref("z")),
                method("l", "sum", ref("r")),
            ],
            r"gradient of its loss at logprobs\[0\] is nan; expected finite numbers",
        ),
    ],
)
def test_a_loss_that_is_no_finite_scalar_with_a_gradient_is_refused(
    nodes: list[Node], complaint: str
) -> None:
    refused(complaint, *nodes)


def test_a_metric_is_one_number() -> None:
    total = method("total", "sum", LP)
    for value in (LP, ref("shape")):
        refused(
            r"metric 'custom/a:sum' is .*; expected one number",
            total,
            call("shape", "getattr", LP, "shape"),
            last=output(ref("total"), **{"custom/a:sum": value}),
        )


def test_a_metric_may_be_a_plain_number_or_not_finite() -> None:
    found = run(
        method("total", "sum", LP),
        method("size", "size", LP, 0),
        call("nan", "torch.log", ref("total")),
        last=output(ref("total"), **{"custom/a:sum": ref("size"), "custom/b:sum": ref("nan")}),
    )

    assert found.metrics["custom/a:sum"].item() == 3.0
    assert found.metrics["custom/b:sum"].isnan()


ONES = call("big", "torch.arange", MAX_VALUE_ELEMENTS)


@pytest.mark.parametrize(
    "nodes",
    [
        [call("bomb", "torch.arange", MAX_VALUE_ELEMENTS + 1)],
        [call("bomb", "torch.arange", 0, 1, 1e-300)],
        [method("bomb", "expand", LP, 2**40, -1)],
        [method("bomb", "repeat", LP, 2**20, 2**20)],
        [ONES, call("bomb", "torch.cat", [ref("big"), ref("big")])],
        [ONES, call("bomb", "torch.stack", {"tuple": [ref("big")] * 2})],
        [ONES, call("bomb", "torch.outer", ref("big"), ref("big"))],
        [
            ONES,
            method("column", "unsqueeze", ref("big"), 1),
            call("bomb", "operator.mul", ref("big"), ref("column")),
        ],
        [
            call("a", "torch.arange", 40_000),
            method("row", "reshape", ref("a"), 1, -1),
            method("column", "reshape", ref("a"), -1, 1),
            call("bomb", "operator.matmul", ref("column"), ref("row")),
        ],
        [
            call("a", "torch.arange", 4096),
            method("m", "view", ref("a"), 1, 4096),
            method("e", "expand", ref("m"), 2048, 4096),
            method("t", "t", ref("e")),
            call("bomb", "operator.matmul", ref("t"), ref("e")),
        ],
        [
            call("a", "torch.arange", 4096),
            method("z", "mul", ref("a"), 0),
            method("m", "view", ref("a"), 1, 4096),
            call("bomb", "operator.getitem", ref("m"), ref("z")),
        ],
        [
            call("a", "torch.arange", 4096),
            method("z", "mul", ref("a"), 0),
            method("m", "view", ref("a"), 1, 4096),
            call("bomb", "torch.index_select", ref("m"), 0, ref("z")),
        ],
        [call("p", "torch.arange", 300), call("bomb", "torch.unbind", ref("p"))],
        [call("p", "torch.arange", 300), call("bomb", "torch.functional.split", ref("p"), 1)],
        [call("p", "torch.arange", 300), method("bomb", "chunk", ref("p"), 300)],
        [method("bomb", "diff", LP, 2**40)],
    ],
)
def test_a_bomb_is_refused_before_it_takes_memory_or_time(nodes: list[Node]) -> None:
    started_s = time.perf_counter()

    refused("node 'bomb'.*(at most|more than|are accepted|expected 0 to)", *nodes)

    assert time.perf_counter() - started_s < 1.0


def test_all_values_together_are_bounded_too() -> None:
    nodes = [ONES]
    for index in range(MAX_TOTAL_ELEMENTS // MAX_VALUE_ELEMENTS):
        previous = nodes[-1].name
        nodes.append(method(f"view{index}", "unsqueeze", ref(previous), 0))

    refused("more than 67108864 elements together", *nodes)


@pytest.mark.parametrize(
    ("nodes", "complaint"),
    [
        (["operator.pow", 10**9, 10**9], "Result too large|out of range"),
        (["operator.pow", 2**53, 53], "an integer beyond the accepted"),
        (["operator.mul", 2**53, 2**53], "an integer beyond the accepted"),
        (["operator.pow", -1, 0.5], "not real"),
        (["operator.pow", 0, -1], "cannot be raised|zero"),
        (["operator.floordiv", 1, 0], "zero"),
        (["operator.mod", 1, 0], "zero"),
        (["math.exp", 10**6], "range error"),
        (["math.sqrt", -1], "domain error|nonnegative"),
        (["math.floor", 1e300], "an integer beyond the accepted"),
    ],
)
def test_numbers_are_bounded(nodes: list[Any], complaint: str) -> None:
    refused(f"node 'bad'.*({complaint})", call("bad", *nodes))


def test_python_sequences_are_no_operands() -> None:
    """A shape times a large number would be a list without bound."""
    shape = call("shape", "getattr", LP, "shape")
    for target in ("operator.mul", "operator.add"):
        refused("'input' is a tuple; expected operand", shape, call("bad", target, ref("shape"), 9))
    refused("expected operand", shape, call("bad", "operator.mul", 2**50, ref("shape")))


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        (method("bad", "view", LP, 2), r"of float32 \[3\]: shape '\[2\]' is invalid"),
        (method("bad", "sum", LP, 5), "out of range"),
        (method("bad", "std", LP, 0, correction=3), "it needs more than 3 values, and there are 3"),
        (method("bad", "gather", LP, 0, ref("far")), "out of bounds"),
        (call("bad", "operator.getitem", LP, ref("far")), "out of bounds|out of range"),
        (call("bad", "operator.getitem", LP, 7), "out of bounds|out of range"),
        (call("bad", "operator.getitem", LP, LP), "is no index; expected int64 or bool"),
        (call("bad", "operator.matmul", LP, ref("far")), "size|shape|dtype|expected"),
        (method("bad", "dot", LP, ref("far")), "same dtype|inconsistent|expected"),
        (
            method("bad", "mul", LP, ref("far")),
            r"of float32 \[3\], int64 \[2\]: The size of tensor",
        ),
        (call("bad", "torch.nn.functional.mse_loss", LP, ref("far")), "they must be equal"),
        (method("bad", "view", LP, LP), "'shape' is a tuple|expected shape"),
        (method("bad", "sum", LP, LP), "argument 'dim' is float32"),
        (method("bad", "squeeze", LP, LP), "argument 'dim' is float32"),
        (call("bad", "getattr", LP, "values"), "only max, min, sort and topk"),
        (method("bad", "to", LP, {"dtype": "float32"}, dtype=LP), "argument 'dtype' is float32"),
        (call("bad", "operator.floordiv", ref("lowest"), -1), "divides the most negative integer"),
        (call("bad", "operator.mod", ref("lowest"), -1), "divides the most negative integer"),
        (
            call("bad", "torch.div", ref("lowest"), -1, rounding_mode="trunc"),
            "divides the most negative integer",
        ),
        (call("bad", "operator.floordiv", ref("far"), 0), "ZeroDivision|zero"),
        (method("bad", "remainder", ref("far"), ref("zero")), "ZeroDivision|zero"),
    ],
)
def test_what_does_not_fit_is_told_with_its_node_and_shapes(node: Node, complaint: str) -> None:
    refused(
        f"custom loss 'hand': node 'bad' .*({complaint})",
        node,
        far=torch.tensor([1, 99]),
        lowest=torch.tensor([torch.iinfo(torch.int64).min]),
        zero=torch.tensor([0, 0]),
    )


def test_a_message_of_torch_is_cut_to_a_line() -> None:
    with pytest.raises(UserError) as caught:
        run(method("bad", "view", LP, 2))

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Watch:
    """A clock that moves on by itself each time it is read."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


SLOW = custom_loss(
    call("a", "torch.exp", LP), call("b", "torch.exp", LP), method("total", "sum", ref("b"))
)


def test_one_datum_may_take_so_long_and_no_longer() -> None:
    limit = TimeLimit(datum_s=2.5, operation_s=100.0, mono_s=Watch(1.0))

    with pytest.raises(UserError, match=r"node 'total' .*longer than 2.5 s for one datum"):
        CustomLossRun(SLOW, limit)(X, {}, {})


def test_the_data_of_an_operation_have_a_time_together() -> None:
    run = CustomLossRun(SLOW, TimeLimit(datum_s=9.0, operation_s=10.0, mono_s=Watch(1.0)))
    run(X, {}, {})
    run(X, {}, {})

    with pytest.raises(UserError, match="longer than 10 s for the data of one operation"):
        run(X, {}, {})


def test_a_replay_has_no_limit_of_time() -> None:
    """What succeeded once must succeed again, on however slow a machine."""
    assert CustomLossRun(SLOW, time_limit=None)(X, {}, {}).loss.isfinite()
