"""Attention with sinks against its definition, left to autograd.

Legend: S sequences, N heads, L queries, K keys, H head size.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cyclora_workers.attention_sinks import add_sinks, attend_in_parts, attend_with_sinks
from parity.tolerances import FORWARD, GRADIENT, close
from workers.sampling.builders import threads

SINKS_N = torch.tensor([-20.0, 0.0, 1.5, 6.0])
SCALING = 0.3


def heads(num_sequences: int, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    shape = (num_sequences, 4, num_tokens, 16)
    query, key, value = torch.randn((3, *shape), generator=generator)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def window_mask(num_tokens: int, window: int) -> Tensor:
    ones_LL = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
    return torch.where(ones_LL.tril().triu(1 - window), 0.0, float("-inf"))


def by_definition(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    weights = torch.exp((query @ key.transpose(2, 3)) * SCALING + mask)
    total = weights.sum(-1, keepdim=True) + SINKS_N.exp()[None, :, None, None]
    return weights / total @ value


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("num_tokens", [1, 7, 70])
@pytest.mark.parametrize("attend", [attend_with_sinks, attend_in_parts])
def test_results_and_gradients_are_those_of_the_definition(
    attend: Callable[..., Tensor], num_tokens: int, window: int | None
) -> None:
    mask = window_mask(num_tokens, window or num_tokens)
    given = None if window is None else mask
    ours, theirs = heads(2, num_tokens), heads(2, num_tokens)

    out = attend(*ours, SINKS_N, SCALING, given)
    expected = by_definition(*theirs, mask)

    close(out, expected, FORWARD[torch.float32])
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    out.backward(gradient)
    expected.backward(gradient)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        close(mine.grad, other.grad, GRADIENT[torch.float32])


def test_a_low_sink_is_as_none() -> None:
    query, key, value = (tensor.detach() for tensor in heads(1, 9))

    out = attend_with_sinks(query, key, value, torch.full((4,), -1e4), SCALING, None)

    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=SCALING
    )
    close(out, plain, FORWARD[torch.float32])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_takes_sinks_on_alike_among_any_others(num_threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    out_LH, lse_L = torch.randn(999, 20, generator=generator), torch.randn(999, generator=generator)
    sinks_L = torch.randn(999, generator=generator)
    with threads(num_threads):
        whole_LH, whole_L = add_sinks(out_LH, lse_L, sinks_L)
        for start, stop in ((0, 1), (5, 12), (990, 999), (3, 700)):
            rows = slice(start, stop)
            part_LH, part_L = add_sinks(out_LH[rows], lse_L[rows], sinks_L[rows])

            assert torch.equal(part_LH, whole_LH[rows])
            assert torch.equal(part_L, whole_L[rows])
