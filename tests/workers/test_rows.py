"""Rows begin at aligned addresses, and usual shapes pay nothing for it.

Legend: T rows, D columns.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cyclora_workers.rows import aligned_width, linear, with_aligned_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [1, 10, 48, 64, 1003])
def test_every_row_begins_at_an_aligned_address(num_columns: int, dtype: torch.dtype) -> None:
    x_TD = torch.randn(5, num_columns).to(dtype)

    aligned_TD = with_aligned_rows(x_TD)

    assert torch.equal(aligned_TD, x_TD)
    assert [row.data_ptr() % 64 for row in aligned_TD] == [0] * 5


@pytest.mark.parametrize(("dtype", "num_columns"), [(torch.float32, 48), (torch.bfloat16, 96)])
def test_usual_shapes_and_rows_aligned_before_are_not_copied(
    dtype: torch.dtype, num_columns: int
) -> None:
    for x_TD in (torch.zeros(5, num_columns, dtype=dtype), with_aligned_rows(torch.zeros(5, 10))):
        assert with_aligned_rows(x_TD) is x_TD


def test_a_gradient_passes_unchanged() -> None:
    x_TD = torch.randn(5, 10, requires_grad=True)
    dy_TD = torch.randn(5, 10)

    (gradient_TD,) = torch.autograd.grad(with_aligned_rows(x_TD), x_TD, dy_TD)

    assert torch.equal(gradient_TD, dy_TD)


def test_a_width_is_rounded_up_to_64_bytes() -> None:
    assert [aligned_width(n, torch.float32) for n in (1, 16, 17)] == [16, 16, 32]
    assert [aligned_width(n, torch.bfloat16) for n in (1, 32, 33)] == [32, 32, 64]


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_plain_torch(
    dtype: torch.dtype, has_bias: bool, is_transposed: bool
) -> None:
    x_TD = torch.randn(64, 48).to(dtype)
    weight_FD = (
        torch.randn(48, 80).t().to(dtype) if is_transposed else torch.randn(80, 48).to(dtype)
    )
    bias_F = torch.randn(80).to(dtype) if has_bias else None

    torch.testing.assert_close(
        linear(x_TD, weight_FD, bias_F), functional.linear(x_TD, weight_FD, bias_F)
    )


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_product_has_the_same_bits_among_any_number_of_rows(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    for num_features, num_columns in ((48, 80), (256, 768), (768, 256), (1003, 64)):
        weight_FD = torch.randn(num_features, num_columns, generator=generator).to(dtype)
        x_TD = torch.randn(1024, num_columns, generator=generator).to(dtype)
        whole_TF = linear(x_TD, weight_FD, None)
        for start, stop in ((0, 32), (32, 160), (96, 1024), (512, 992)):
            assert torch.equal(linear(x_TD[start:stop], weight_FD, None), whole_TF[start:stop])
