"""Quantised weights against their formulas, element by element, and how far they are from exact.

Legend: T packed tokens, F features out, D features in.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cyclora_workers.architecture import UnsupportedModel
from cyclora_workers.base_model import BaseModel
from cyclora_workers.frozen_weight import DenseWeight
from cyclora_workers.quantized_weight import (
    GROUP_SIZE,
    Int4Weight,
    Int8Weight,
    QuantizedLinear,
    QuantizedWeight,
)
from parity.families import FAMILIES
from parity.tolerances import FORWARD, GRADIENT, close
from workers.builders import CPU, cross_entropy, item, llama, load, random_adapter, run

KINDS = [Int8Weight, Int4Weight]
DTYPES = [torch.float32, torch.bfloat16]


def weight(num_out: int = 12, num_in: int = 150, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(num_in)
    return (torch.randn(num_out, num_in, generator=generator) * 0.1).to(dtype)


def steps(row: list[float], low: float, step: float) -> list[float]:
    """Each element rounded to the nearest of ``low + step * n``."""
    return [low + step * round((each - low) / step) for each in row]


@torch.no_grad()
def test_int8_rounds_each_feature_to_255_steps() -> None:
    weight_FD = weight()

    dense_FD = Int8Weight(weight_FD).dense()

    for row, found in zip(weight_FD.tolist(), dense_FD, strict=True):
        step = max(map(abs, row)) / 127
        torch.testing.assert_close(found, torch.tensor(steps(row, 0.0, step)))


@torch.no_grad()
def test_int4_rounds_each_group_to_16_steps_from_its_minimum() -> None:
    """Of 150 elements the last group has 22, and zeros behind them."""
    weight_FD = weight()

    dense_FD = Int4Weight(weight_FD).dense()

    for row, found in zip(weight_FD.tolist(), dense_FD, strict=True):
        expected: list[float] = []
        for start in range(0, len(row), GROUP_SIZE):
            group = row[start : start + GROUP_SIZE]
            known = [*group, 0.0] if len(group) < GROUP_SIZE else group
            step = (max(known) - min(known)) / 15
            expected += steps(group, min(known), step)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "expected"), [(Int8Weight, 0.008), (Int4Weight, 0.09)])
def test_the_error_is_what_the_page_says(
    kind: type[QuantizedWeight], expected: float, dtype: torch.dtype
) -> None:
    """Of normally distributed weights: the root mean square of the error over that of weights."""
    weight_FD = weight(256, 1024, dtype)

    error_FD = kind(weight_FD).dense().float() - weight_FD.float()

    relative = float(error_FD.norm() / weight_FD.float().norm())
    assert relative == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_weights_are_exact(kind: type[QuantizedWeight]) -> None:
    """A range of zero has no step to divide by."""
    weight_FD = torch.zeros(3, 2 * GROUP_SIZE)
    weight_FD[1] = 0.75
    weight_FD[2] = -0.75

    torch.testing.assert_close(kind(weight_FD).dense(), weight_FD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(kind: type[QuantizedWeight], value: float) -> None:
    weight_FD = weight()
    weight_FD[3, 5] = value

    with pytest.raises(UnsupportedModel, match="not finite"):
        kind(weight_FD)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 128), (33, 70)])
def test_products_equal_those_of_the_dense_weight(
    kind: type[QuantizedWeight], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight_FD = kind(weight(*shape, dtype))
    plain_FD = weight_FD.dense().float()
    x_TD, dy_TF = torch.randn(32, shape[1]).to(dtype), torch.randn(32, shape[0]).to(dtype)
    bias_F = torch.randn(shape[0]).to(dtype)

    y_TF, dx_TD = weight_FD.product(x_TD, bias_F), weight_FD.transposed_product(dy_TF)

    assert y_TF.dtype == dx_TD.dtype == dtype
    close(y_TF, x_TD.float() @ plain_FD.T + bias_F.float(), FORWARD[dtype])
    close(dx_TD, dy_TF.float() @ plain_FD, GRADIENT[dtype])


def test_a_dense_weight_is_used_as_it_is() -> None:
    weight_FD = weight()

    assert DenseWeight(weight_FD).dense() is weight_FD


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.51), ("int4", 0.282)])
def test_weights_take_the_share_of_bf16_that_the_page_says(kind: str, most: float) -> None:
    linear = nn.Linear(1024, 256, bias=False, dtype=torch.bfloat16)

    quantized = QuantizedLinear(linear, "int8" if kind == "int8" else "int4")

    num_bytes = sum(each.nbytes for each in quantized.buffers())
    assert list(quantized.parameters()) == []
    assert num_bytes / linear.weight.nbytes < most


def test_only_linear_layers_of_the_decoder_are_quantised(tmp_path: Path) -> None:
    plain = llama()
    loaded = load(plain, tmp_path / "plain")
    base_model = load(plain, tmp_path / "int8", base_weights="int8")

    kept = {each.nbytes for each in base_model.frozen if each.dtype == torch.int8}
    linears = [m for m in base_model.target_modules if m.name != base_model.unembedding.name]
    assert kept == {m.in_features * m.out_features for m in linears}
    assert base_model.num_parameters == loaded.num_parameters
    assert base_model.target_modules == loaded.target_modules
    assert torch.equal(base_model.unembedding.weight_VD, loaded.unembedding.weight_VD)


@pytest.mark.parametrize("family", ["gpt-oss", "mixtral", "qwen3-moe"])
def test_quantised_mixtures_are_refused_before_their_weights_are_read(
    family: str, tmp_path: Path
) -> None:
    FAMILIES[family].make().config.save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel, match="int4, and the base model is a mixture"):
        BaseModel.load("m", tmp_path, dtype=torch.float32, device=CPU, base_weights="int4")


def test_no_gradient_is_made_for_quantised_weights(tmp_path: Path) -> None:
    base_model = load(llama(), tmp_path, base_weights="int4")

    run(base_model, [item(random_adapter(base_model, 2, 2), cross_entropy([9]))])

    assert all(each.grad is None and not each.requires_grad for each in base_model.frozen)
