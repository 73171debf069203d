"""Rows begin at aligned addresses, and usual shapes pay nothing for it.

Legend: T rows, D columns.
"""

from __future__ import annotations

import pytest
import torch

from cyclora_workers.rows import aligned_width, with_aligned_rows


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
