"""Every operation of the table does what torch does: same value, same gradient.

Each case is a function of x [6] (the logprobs) and y [6], traced by the official SDK.
"""

# Cases are traced with proxies, of which only Any could be said.
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cyclora_core.custom_loss_table import BY_WIRE_NAME, OPERATIONS
from cyclora_core.custom_loss_table import DTYPES as DTYPE_NAMES
from cyclora_workers.custom_loss.functions import DTYPES, FUNCTIONS
from workers.uploads import evaluate, uploaded

Case = Callable[[Any, Any], Any]
f = functional


def grid(x: Any) -> Any:
    return x.reshape(2, 3)


CASES: dict[str, list[Case]] = {
    "add": [
        lambda x, y: x + y,
        lambda x, y: 2 + x,
        lambda x, y: torch.add(x, y, alpha=2),
        lambda x, y: x.add(1.5),
        lambda x, y: x * (x.shape[0] + 1),
    ],
    "sub": [lambda x, y: x - y, lambda x, y: 1 - x, lambda x, y: x.sub(y, alpha=3)],
    "mul": [lambda x, y: x * y, lambda x, y: torch.multiply(x, 2), lambda x, y: x * True],
    "div": [
        lambda x, y: x / y,
        lambda x, y: 1 / x,
        lambda x, y: torch.div(x, y, rounding_mode="floor") * x,
        lambda x, y: x * (x.shape[0] / 4),
    ],
    "floor_divide": [lambda x, y: x * (y // 0.3), lambda x, y: x * (x.shape[0] // 4)],
    "remainder": [lambda x, y: x * (y % 0.3), lambda x, y: x * (x.shape[0] % 4)],
    "pow": [
        lambda x, y: x**2,
        lambda x, y: 2**x,
        lambda x, y: torch.pow(x.abs(), y),
        lambda x, y: x * (x.shape[0] ** 3),
        lambda x, y: x * (0.5 ** x.shape[0]),
    ],
    "neg": [lambda x, y: -x, lambda x, y: x * -(x.shape[0])],
    "positive": [lambda x, y: +x],
    "abs": [lambda x, y: abs(x), lambda x, y: x.abs()],
    "eq": [lambda x, y: x * (y == y[0])],
    "ne": [lambda x, y: x * (y != y[0])],
    "lt": [lambda x, y: x * (x < y), lambda x, y: x * y.lt(1.0)],
    "le": [lambda x, y: x * (x <= y)],
    "gt": [lambda x, y: x * torch.gt(x, y)],
    "ge": [lambda x, y: x * x.ge(y)],
    "bitwise_and": [lambda x, y: x * ((x > -1) & (y > 0))],
    "bitwise_or": [lambda x, y: x * ((x > -1) | (y > 0))],
    "bitwise_xor": [lambda x, y: x * ((x > -1) ^ (y > 0))],
    "bitwise_not": [lambda x, y: x * ~(y > 0)],
    "logical_and": [lambda x, y: x * torch.logical_and(x > -1, y > 0)],
    "logical_or": [lambda x, y: x * torch.logical_or(x > -1, y > 0)],
    "logical_xor": [lambda x, y: x * (x > -1).logical_xor(y > 0)],
    "logical_not": [lambda x, y: x * torch.logical_not(y > 0)],
    "isnan": [lambda x, y: x * torch.isnan(y.log())],
    "isinf": [lambda x, y: x * torch.isinf(y / (y - y[0]))],
    "isfinite": [lambda x, y: x * torch.isfinite(y.log())],
    "exp": [lambda x, y: x.exp()],
    "exp2": [lambda x, y: torch.exp2(x)],
    "expm1": [lambda x, y: torch.expm1(x), lambda x, y: torch.special.expm1(x)],
    "log": [lambda x, y: (-x).log()],
    "log1p": [lambda x, y: torch.log1p(-x), lambda x, y: torch.special.log1p(-x)],
    "log2": [lambda x, y: (-x).log2()],
    "log10": [lambda x, y: (-x).log10()],
    "sqrt": [lambda x, y: (-x).sqrt()],
    "rsqrt": [lambda x, y: (-x).rsqrt()],
    "square": [lambda x, y: torch.square(x)],
    "reciprocal": [lambda x, y: x.reciprocal()],
    "sin": [lambda x, y: x.sin()],
    "cos": [lambda x, y: torch.cos(x)],
    "tanh": [lambda x, y: x.tanh(), lambda x, y: f.tanh(x)],
    "erf": [lambda x, y: torch.erf(x), lambda x, y: torch.special.erf(x)],
    "sigmoid": [
        lambda x, y: x.sigmoid(),
        lambda x, y: f.sigmoid(x),
        lambda x, y: torch.special.expit(x),
    ],
    "logit": [lambda x, y: x.exp().logit(), lambda x, y: torch.special.logit(x.exp(), eps=0.1)],
    "sign": [lambda x, y: x * torch.sign(y), lambda x, y: x * y.sgn()],
    "floor": [lambda x, y: x * y.floor()],
    "ceil": [lambda x, y: x * y.ceil()],
    "round": [lambda x, y: x * y.round()],
    "trunc": [lambda x, y: x * y.trunc()],
    "relu": [lambda x, y: f.relu(x + 1), lambda x, y: (x + 1).relu()],
    "leaky_relu": [lambda x, y: f.leaky_relu(x + 1, 0.2)],
    "elu": [lambda x, y: f.elu(x + 1, alpha=0.5)],
    "gelu": [lambda x, y: f.gelu(x), lambda x, y: f.gelu(x, approximate="tanh")],
    "silu": [lambda x, y: f.silu(x)],
    "softplus": [lambda x, y: f.softplus(x, beta=2)],
    "logsigmoid": [lambda x, y: f.logsigmoid(x - y)],
    "logaddexp": [lambda x, y: torch.logaddexp(x, y)],
    "xlogy": [lambda x, y: torch.xlogy(y, -x), lambda x, y: torch.special.xlogy(y, -x)],
    "maximum": [lambda x, y: torch.maximum(x, y)],
    "minimum": [lambda x, y: x.minimum(y)],
    "clamp": [
        lambda x, y: x.clamp(-1, -0.5),
        lambda x, y: torch.clip(x, max=-0.5),
        lambda x, y: x.clamp(min=y, max=y + 1),
        lambda x, y: x.clamp(-math.inf, -0.5),
    ],
    "clamp_min": [lambda x, y: x.clamp_min(-1)],
    "clamp_max": [lambda x, y: x.clamp_max(y)],
    "lerp": [lambda x, y: torch.lerp(x, y, 0.3)],
    "where": [lambda x, y: torch.where(y > 0, x, 0.0), lambda x, y: torch.where(y > 0, x, y)],
    "where_method": [lambda x, y: x.where(y > 0, y)],
    "masked_fill": [lambda x, y: x.masked_fill(y > 0, 0.5)],
    "nan_to_num": [lambda x, y: x * y.log().nan_to_num(nan=0.25)],
    "sum": [
        lambda x, y: x.sum(),
        lambda x, y: grid(x).sum(0),
        lambda x, y: grid(x).sum(axis=1, keepdims=True),
        lambda x, y: grid(x).sum(dim=(0, 1)),
        lambda x, y: torch.sum(x, dim=None, dtype=torch.float64),
    ],
    "nansum": [lambda x, y: (x * y).nansum()],
    "mean": [lambda x, y: x.mean(), lambda x, y: torch.mean(grid(x), 1, True)],
    "nanmean": [lambda x, y: grid(x * y).nanmean(0)],
    "var": [lambda x, y: x.var(), lambda x, y: grid(x).var(1, unbiased=False)],
    "std": [lambda x, y: x.std(), lambda x, y: torch.std(grid(x), dim=0, correction=0)],
    "max": [
        lambda x, y: x.max(),
        lambda x, y: torch.max(grid(x), dim=1).values,
        lambda x, y: torch.max(grid(x), 1)[0],
        lambda x, y: torch.max(x, y),
    ],
    "min": [lambda x, y: x.min(), lambda x, y: grid(x).min(0).values, lambda x, y: x.min(y)],
    "amax": [lambda x, y: torch.amax(grid(x), dim=(0, 1)), lambda x, y: x.amax()],
    "amin": [lambda x, y: grid(x).amin(1)],
    "argmax": [lambda x, y: x * grid(x).argmax(), lambda x, y: x[grid(y).argmax(1)]],
    "argmin": [lambda x, y: x * x.argmin()],
    "any": [lambda x, y: x * (y > 0).any(), lambda x, y: grid(x) * (grid(y) > 1).any(0)],
    "all": [lambda x, y: x * (y > -9).all(), lambda x, y: grid(x) * (grid(y) > 0).all(0)],
    "count_nonzero": [lambda x, y: x * torch.count_nonzero(y > 0)],
    "logsumexp": [
        lambda x, y: torch.logsumexp(grid(x), 1),
        lambda x, y: torch.special.logsumexp(x, dim=0),
    ],
    "vector_norm": [lambda x, y: torch.linalg.vector_norm(grid(x), dim=1)],
    "norm": [lambda x, y: x.norm(), lambda x, y: grid(x).norm(p=1, dim=1)],
    "softmax": [lambda x, y: f.softmax(x, dim=0), lambda x, y: grid(x).softmax(-1)],
    "log_softmax": [lambda x, y: f.log_softmax(x, dim=0), lambda x, y: torch.log_softmax(x, 0)],
    "cumsum": [lambda x, y: x.cumsum(0), lambda x, y: torch.cumsum(grid(x), dim=1)],
    "logcumsumexp": [lambda x, y: x.logcumsumexp(0)],
    "dot": [lambda x, y: x.dot(y)],
    "mv": [lambda x, y: grid(x).mv(y[:3])],
    "matmul": [
        lambda x, y: grid(x) @ grid(y).t(),
        lambda x, y: x @ y,
        lambda x, y: grid(x) @ y[3:],
    ],
    "outer": [lambda x, y: torch.outer(x, y)],
    "sort": [lambda x, y: x.sort().values, lambda x, y: torch.sort(grid(x), 1, descending=True)[0]],
    "argsort": [lambda x, y: x * y.argsort()],
    "topk": [lambda x, y: x.topk(3).values, lambda x, y: x[torch.topk(y, 2).indices]],
    "mse_loss": [lambda x, y: f.mse_loss(x, y)],
    "l1_loss": [lambda x, y: f.l1_loss(x, y, reduction="sum")],
    "smooth_l1_loss": [lambda x, y: f.smooth_l1_loss(x, y, beta=0.5)],
    "huber_loss": [lambda x, y: f.huber_loss(x, y, delta=0.5, reduction="none")],
    "kl_div": [
        lambda x, y: f.kl_div(x, y.sigmoid(), reduction="sum"),
        lambda x, y: f.kl_div(x, y, reduction="none", log_target=True),
    ],
    "binary_cross_entropy_with_logits": [
        lambda x, y: f.binary_cross_entropy_with_logits(x, y.sigmoid()),
        lambda x, y: f.binary_cross_entropy_with_logits(x, y.sigmoid(), weight=y, pos_weight=y),
    ],
    "reshape": [lambda x, y: x.view(3, -1), lambda x, y: torch.reshape(x, (x.shape[0], 1))],
    "reshape_as": [lambda x, y: grid(x).reshape_as(y)],
    "flatten": [lambda x, y: grid(x).flatten(), lambda x, y: torch.flatten(grid(x), 0, -1)],
    "ravel": [lambda x, y: grid(x).ravel()],
    "unsqueeze": [lambda x, y: x.unsqueeze(-1)],
    "squeeze": [lambda x, y: x[None].squeeze(), lambda x, y: x[None].squeeze(0)],
    "transpose": [lambda x, y: grid(x).transpose(0, 1), lambda x, y: torch.swapaxes(grid(x), 0, 1)],
    "permute": [lambda x, y: grid(x).permute(1, 0), lambda x, y: grid(x).permute(dims=(1, 0))],
    "t": [lambda x, y: grid(x).t(), lambda x, y: grid(x).T],
    "mT": [lambda x, y: grid(x).mT],
    "expand": [lambda x, y: x.expand(4, -1), lambda x, y: torch.broadcast_to(x, (2, 6))],
    "expand_as": [lambda x, y: x[:1].expand_as(y)],
    "repeat": [lambda x, y: x.repeat(2, 2)],
    "cat": [lambda x, y: torch.cat([x, y]), lambda x, y: torch.cat((grid(x), grid(y)), dim=-1)],
    "stack": [lambda x, y: torch.stack([x, y], 1)],
    "split": [lambda x, y: torch.split(x, 2)[1], lambda x, y: torch.split(x, [1, 5])[1]],
    "split_method": [lambda x, y: x.split(4)[0]],
    "chunk": [lambda x, y: x.chunk(3)[2]],
    "unbind": [lambda x, y: grid(x).unbind(1)[0]],
    "narrow": [lambda x, y: x.narrow(0, 1, 3)],
    "select": [lambda x, y: grid(x).select(1, 2)],
    "index_select": [lambda x, y: x.index_select(0, y.argsort()[:2])],
    "gather": [
        lambda x, y: x.gather(0, y.argsort()),
        lambda x, y: torch.gather(x, -1, y.long() * 0),
    ],
    "masked_select": [lambda x, y: x.masked_select(y > 0)],
    "getitem": [
        lambda x, y: x[0],
        lambda x, y: x[1:-1:2],
        lambda x, y: grid(x)[:, 1],
        lambda x, y: grid(x)[..., None, -1:],
        lambda x, y: x[y > 0],
        lambda x, y: x[[0, 2, 2]],
        lambda x, y: grid(x)[0, 2],
        lambda x, y: grid(x)[y.argsort() % 2, y.argsort() % 3],
        lambda x, y: grid(x)[:, [0, 2]],
        lambda x, y: x[: x.shape[0] // 2],
    ],
    "flip": [lambda x, y: x.flip(0), lambda x, y: torch.flip(grid(x), [0, 1])],
    "roll": [lambda x, y: x.roll(2), lambda x, y: torch.roll(grid(x), 1, dims=1)],
    "diff": [lambda x, y: x.diff()],
    "tril": [lambda x, y: torch.tril(grid(x))],
    "triu": [lambda x, y: torch.triu(torch.outer(x, y), diagonal=1)],
    "zeros_like": [lambda x, y: x + torch.zeros_like(x, device=x.device)],
    "ones_like": [lambda x, y: x * torch.ones_like(y, dtype=torch.float32)],
    "full_like": [lambda x, y: x * torch.full_like(y, 0.3)],
    "arange": [
        lambda x, y: x * torch.arange(x.shape[0]),
        lambda x, y: x * torch.arange(1, x.shape[0] + 1, dtype=torch.float32, device=x.device),
    ],
    "to": [
        lambda x, y: x.to(torch.float64),
        lambda x, y: x.to("cpu"),
        lambda x, y: x * (y > 0).to(x.dtype),
        lambda x, y: x * (y > 0).to(x),
        lambda x, y: x.to(device=x.device, dtype=torch.float64),
    ],
    "type_as": [lambda x, y: x * (y > 0).type_as(x)],
    "float": [lambda x, y: x * (y > 0).float()],
    "double": [lambda x, y: x.double()],
    "long": [lambda x, y: x * y.long()],
    "int": [lambda x, y: x * y.int()],
    "bool": [lambda x, y: x * y.bool()],
    "cpu": [lambda x, y: x.cpu()],
    "detach": [lambda x, y: x * x.detach()],
    "clone": [lambda x, y: x.clone()],
    "contiguous": [lambda x, y: grid(x).t().contiguous()],
    "size": [
        lambda x, y: x * x.size(0),
        lambda x, y: x.view(x.shape),
        lambda x, y: x * x.shape[-1],
    ],
    "ndim": [lambda x, y: x * x.ndim, lambda x, y: x * grid(x).dim()],
    "numel": [lambda x, y: x / x.numel(), lambda x, y: x / torch.numel(y)],
    "dtype": [lambda x, y: x * y.to(x.dtype)],
    "device": [lambda x, y: x.to(y.device)],
    "values": [lambda x, y: grid(x).max(1).values],
    "indices": [lambda x, y: x[grid(y).max(1).indices]],
    "math_exp": [lambda x, y: x * math.exp(x.shape[0])],
    "math_expm1": [lambda x, y: x * math.expm1(x.shape[0])],
    "math_log": [lambda x, y: x * math.log(x.shape[0]), lambda x, y: x * math.log(x.shape[0], 2)],
    "math_log1p": [lambda x, y: x * math.log1p(x.shape[0])],
    "math_log2": [lambda x, y: x * math.log2(x.shape[0])],
    "math_log10": [lambda x, y: x * math.log10(x.shape[0])],
    "math_sqrt": [lambda x, y: x * math.sqrt(x.shape[0])],
    "math_pow": [lambda x, y: x * math.pow(x.shape[0], 0.5)],
    "math_tanh": [lambda x, y: x * math.tanh(x.shape[0])],
    "math_sin": [lambda x, y: x * math.sin(x.shape[0])],
    "math_cos": [lambda x, y: x * math.cos(x.shape[0])],
    "math_floor": [lambda x, y: x * math.floor(x.shape[0] / 4)],
    "math_ceil": [lambda x, y: x * math.ceil(x.shape[0] / 4)],
    "math_fabs": [lambda x, y: x * math.fabs(x.shape[0])],
}

X = torch.tensor([-0.3, -1.2, -0.7, -2.1, -0.1, -1.6])
Y = torch.tensor([0.4, 1.1, -0.6, 2.0, -1.3, 0.2])


def as_loss(case: Case) -> Callable[[Any, Any], Any]:
    """A loss that tells every element of the case's value from every other."""

    def loss(logprobs: Any, y: Any) -> Any:
        value = case(logprobs, y).double().reshape(-1)
        weighted = value * (torch.arange(value.numel()) + 1)
        return weighted.sum() + 0.0 * logprobs.sum(), {"custom/n:sum": value.sum()}

    return loss


@pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))]
)
def test_an_operation_gives_the_value_and_gradient_that_torch_gives(name: str, index: int) -> None:
    function = as_loss(CASES[name][index])
    leaf = X.clone().requires_grad_()
    expected, metrics = function(leaf, Y)
    expected.backward()

    loss = uploaded(function, {"logprobs": 1, "y": 1})
    found = evaluate(loss, X, y=Y)

    torch.testing.assert_close(found.loss, expected.detach())
    torch.testing.assert_close(found.coefficient, leaf.grad)
    torch.testing.assert_close(found.metrics["custom/n:sum"], metrics["custom/n:sum"].detach())
    targets = {
        BY_WIRE_NAME[wire].name
        for node in loss.nodes
        for wire in (node.target, f".{node.target}", f"@{node.args[1] if node.args[1:] else ''}")
        if wire in BY_WIRE_NAME
    }
    assert name in targets


def test_every_operation_has_a_case_and_a_function() -> None:
    assert CASES.keys() == OPERATIONS.keys()
    assert FUNCTIONS.keys() == OPERATIONS.keys()
    assert tuple(DTYPES) == DTYPE_NAMES


def resolve(name: str) -> Any:
    """What a wire name of the table means in torch; only tests look names up like this."""
    if name.startswith((".", "@")):
        return getattr(Tensor, name[1:], None) or getattr(torch.return_types.max, name[1:], None)
    found: Any = {"torch": torch, "math": math, "operator": operator}[name.split(".")[0]]
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", BY_WIRE_NAME)
def test_every_name_of_the_table_exists_in_torch(name: str) -> None:
    assert resolve(name) is not None
