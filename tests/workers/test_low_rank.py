"""The low-rank part of single segments: what sizes its products have, and that neighbours stay out.

Legend: T packed tokens, D features in, F features out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cyclora_core.operations import LoraConfig
from cyclora_workers import low_rank
from cyclora_workers.adapter import AdapterLayout, ModuleGroup, TargetModule
from cyclora_workers.low_rank import (
    SegmentAdapter,
    add_low_rank_,
    low_ranks_backward_,
    rounded_rows,
)
from parity.tolerances import FORWARD, Tolerance, close

ELEMENTS_OF_ORDER_1 = {torch.float32: Tolerance(1e-5, 1e-5), torch.bfloat16: Tolerance(0, 2e-2)}
RANK, IN, OUT = 8, 256, 512
LARGE = 2200
"""Rows beyond which a sum over rows of these sizes is cut in two."""


def segment_adapter(start: int, stop: int, dtype: torch.dtype = torch.float32) -> SegmentAdapter:
    target = TargetModule("layer", IN, OUT, ModuleGroup.MLP)
    layout = AdapterLayout([target], LoraConfig(RANK, train_unembed=False))
    generator = torch.Generator().manual_seed(start)
    flat_P = torch.randn(layout.num_elements, generator=generator).mul_(0.1).to(dtype)
    weights = layout.weights(flat_P, torch.zeros(layout.num_elements))
    return SegmentAdapter(start, stop, weights.modules["layer"], weights.scaling)


def gradients(segment: SegmentAdapter, x_TD: Tensor, dy_TF: Tensor, dx_TD: Tensor) -> list[Tensor]:
    """Forward and backward of one segment; its gradients, and ``dx_TD``."""
    low_NR = add_low_rank_(dy_TF.new_zeros(dy_TF.shape), x_TD, segment)
    low_ranks_backward_([segment], [low_NR], dy_TF, x_TD, dx_TD)
    gradient_A_RD, gradient_B_FR = segment.adapter.gradient_A_RD, segment.adapter.gradient_B_FR
    assert gradient_A_RD is not None
    assert gradient_B_FR is not None
    return [gradient_A_RD, gradient_B_FR, dx_TD]


def test_rounded_rows_hold_all_rows_with_few_to_spare_in_few_sizes() -> None:
    sizes = [rounded_rows(num_rows) for num_rows in range(1, 4097)]

    for num_rows, size in enumerate(sizes, 1):
        assert size % 32 == 0
        assert num_rows <= size < num_rows + max(32, num_rows / 8)
    assert len(set(sizes)) == 40


def test_a_tenants_new_lengths_bring_few_new_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[Any] = set()
    real = low_rank.linear

    def linear(x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None) -> Tensor:
        shapes.add((x_TD.shape, weight_FD.shape))
        return real(x_TD, weight_FD, bias_F)

    monkeypatch.setattr(low_rank, "linear", linear)
    x_TD, dy_TF = torch.zeros(4096, IN), torch.zeros(4096, OUT)
    for num_rows in range(1, 3000, 13):
        gradients(segment_adapter(0, num_rows), x_TD, dy_TF, torch.zeros(4096, IN))

    assert len(shapes) < 5 * 40  # four products over rows, and two sums when they are large


@pytest.mark.parametrize("num_rows", [1, 31, 146, 600, LARGE + 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_plain_products(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(num_rows)
    start, stop = 5, 5 + num_rows
    segment = segment_adapter(start, stop, dtype)
    x_TD, dy_TF = torch.randn(stop + 40, IN).to(dtype), torch.randn(stop + 40, OUT).to(dtype)
    found = gradients(segment, x_TD, dy_TF, torch.zeros_like(x_TD))

    x_ND, dy_NF = x_TD[start:stop].double(), dy_TF[start:stop].double()
    lora_A_RD, lora_B_FR = (
        each.double() for each in (segment.adapter.lora_A_RD, segment.adapter.lora_B_FR)
    )
    dlow_NR = segment.scaling * dy_NF @ lora_B_FR
    dx_TD = torch.zeros(x_TD.shape, dtype=torch.float64)
    dx_TD[start:stop] = dlow_NR @ lora_A_RD
    expected = [dlow_NR.T @ x_ND, segment.scaling * dy_NF.T @ (x_ND @ lora_A_RD.T), dx_TD]

    for mine, other in zip(found, expected, strict=True):
        size = other.abs().max()
        close(mine / size, other / size, ELEMENTS_OF_ORDER_1[dtype])


@pytest.mark.parametrize("num_rows", [1, 40, 600, LARGE])
def test_a_neighbour_that_diverged_changes_no_bit(num_rows: int) -> None:
    start, stop = 40, 40 + num_rows
    x_TD, dy_TF = torch.randn(stop + 500, IN), torch.randn(stop + 500, OUT)
    expected = gradients(segment_adapter(start, stop), x_TD, dy_TF, torch.zeros_like(x_TD))
    for neighbours in (slice(0, start), slice(stop, None)):
        x_TD[neighbours] = torch.nan
        dy_TF[neighbours] = torch.inf

    found = gradients(segment_adapter(start, stop), x_TD, dy_TF, torch.zeros_like(x_TD))

    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33])
def test_few_rows_of_a_large_vocabulary_have_their_gradient(num_rows: int) -> None:
    left_NR, right_ND = torch.randn(num_rows, 32), torch.randn(num_rows, 200_000)
    target_RD = torch.ones(32, 200_000)

    low_rank.add_sum_over_rows_(target_RD, left_NR, right_ND, 2.0)

    close(target_RD, 1 + 2 * left_NR.T @ right_ND, FORWARD[torch.float32])


def test_only_the_segments_own_rows_get_its_part() -> None:
    x_TD, y_TF = torch.randn(300, IN), torch.zeros(300, OUT)
    segment = segment_adapter(100, 150)

    low_NR = add_low_rank_(y_TF, x_TD, segment)

    low = x_TD[100:150] @ segment.adapter.lora_A_RD.T
    close(low_NR, low, FORWARD[torch.float32])
    close(
        y_TF[100:150], segment.scaling * low @ segment.adapter.lora_B_FR.T, FORWARD[torch.float32]
    )
    assert not y_TF[:100].any()
    assert not y_TF[150:].any()


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 33, 513, 600, 1100])
def test_where_the_pack_ends_changes_no_bit(num_rows: int, dtype: torch.dtype) -> None:
    x_TD, dy_TF = torch.randn(2048, IN).to(dtype), torch.randn(2048, OUT).to(dtype)

    def found(num_packed: int) -> list[Tensor]:
        packed_TD, packed_TF = x_TD[:num_packed], dy_TF[:num_packed]
        segment, y_TF = segment_adapter(5, 5 + num_rows, dtype), torch.ones_like(packed_TF)
        add_low_rank_(y_TF, packed_TD, segment)
        made = gradients(segment, packed_TD, packed_TF, torch.zeros_like(packed_TD))
        return [*made[:2], made[2][: 5 + num_rows], y_TF[: 5 + num_rows]]

    for mine, other in zip(found(5 + num_rows), found(2048), strict=True):
        assert torch.equal(mine, other)
