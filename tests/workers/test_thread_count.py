"""Small products get one thread, and whoever computes next has all again."""

from __future__ import annotations

import pytest
import torch

from cyclora_workers.adapter import ModuleAdapter
from cyclora_workers.low_rank import SegmentAdapter, add_low_rank_, low_rank_backward_
from cyclora_workers.thread_count import threads_for
from workers.sampling.builders import threads

SMALL, LARGE = 1 << 16, (1 << 16) + 1


@pytest.mark.parametrize(
    ("num_weights", "num_threads", "inside"),
    [(SMALL, 1, 1), (SMALL, 2, 1), (LARGE, 2, 2), (SMALL, 3, 3), (LARGE, 3, 3)],
)
def test_small_products_get_one_of_two_threads(
    num_weights: int, num_threads: int, inside: int
) -> None:
    with threads(num_threads):
        with threads_for(num_weights):
            assert torch.get_num_threads() == inside

        assert torch.get_num_threads() == num_threads


def test_all_threads_are_back_after_an_error() -> None:
    with threads(2):
        with pytest.raises(ZeroDivisionError), threads_for(1):
            raise ZeroDivisionError

        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora_rank", [1, 8, 32])
def test_a_segment_has_the_same_bits_whatever_it_shares_a_pass_with(
    lora_rank: int, dtype: torch.dtype, num_threads: int
) -> None:
    """Alone, and between rows of others; of modules on both sides of the bound."""
    for num_outputs in (96, 2080):
        x_TD, dy_TF = torch.randn(700, 128).to(dtype), torch.randn(700, num_outputs).to(dtype)
        found: list[list[torch.Tensor]] = []
        factors = torch.randn(lora_rank, 128).to(dtype), torch.randn(num_outputs, lora_rank)
        for start, rows in ((0, slice(320, 520)), (320, slice(0, 700))):
            gradients = torch.zeros(lora_rank, 128), torch.zeros(num_outputs, lora_rank)
            adapter = ModuleAdapter(factors[0], factors[1].to(dtype), *gradients)
            segment = SegmentAdapter(start, start + 200, adapter, 0.5)
            x, dy = x_TD[rows].clone(), dy_TF[rows].clone()
            y, dx = torch.zeros_like(dy), torch.zeros_like(x)
            low_NR = add_low_rank_(y, x, segment)
            own = slice(segment.start, segment.stop)
            low_rank_backward_(segment, low_NR, dy, x[own], dx)
            found.append([y[own], dx[own], *gradients])

        for alone, beside_others in zip(*found, strict=True):
            assert torch.equal(alone, beside_others)
        assert torch.get_num_threads() == num_threads
