"""Gradients of attention in bf16 against the same formula in fp64.

Legend: N query heads, G key-value heads, L queries, S keys, H head size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from cyclora_workers.attention import PackedAttention
from cyclora_workers.attention_products import product_gradients, takes_products
from workers.sampling.builders import threads

SCALING = 0.3


def random_heads(
    num_queries: int, num_keys: int, num_heads: int, num_kv_heads: int, head_size: int = 16
) -> list[Tensor]:
    """Query, key and value, of which the values' mean is far from zero, and a gradient."""
    sizes = [(num_heads, num_queries)] + [(num_kv_heads, num_keys)] * 2 + [(num_heads, num_queries)]
    query, key, value, gradient = (torch.randn(*size, head_size) for size in sizes)
    return [each.bfloat16() for each in (query, key, value + 2, gradient)]


def errors(
    heads: Sequence[Tensor], *, is_causal: bool = False, scaling: float = SCALING
) -> list[float]:
    """Of the gradients by query, key and value, relative to their norms.

    Both take the output as it is kept, in bf16.
    """
    query, key, value, gradient = (each.double() for each in heads)
    group = query.shape[0] // key.shape[0]
    keys, values = (each.repeat_interleave(group, 0) for each in (key, value))
    scores = query @ keys.transpose(1, 2) * scaling
    if is_causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(-1)
    out = (weights @ values).bfloat16()
    delta = (gradient * out.double()).sum(-1, keepdim=True)
    dscores = weights * (gradient @ values.transpose(1, 2) - delta) * scaling
    expected = [dscores @ keys]
    for each in (dscores.transpose(1, 2) @ query, weights.transpose(1, 2) @ gradient):
        expected.append(each.unflatten(0, (-1, group)).sum(1))

    lse = scores.logsumexp(-1).float()
    operands = (heads[3], heads[0], heads[1], heads[2], out, lse)
    found = product_gradients(*operands, scaling, is_causal=is_causal)

    return [
        float((mine.double() - theirs).norm() / theirs.norm())
        for mine, theirs in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("length", [2, 96, 97, 256, 600])
def test_causal_gradients_are_right_to_the_precision_of_bf16(
    length: int, heads: tuple[int, int]
) -> None:
    assert max(errors(random_heads(length, length, *heads), is_causal=True)) < 1e-2


@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 1900), (300, 40), (64, 64)])
def test_gradients_of_queries_that_see_every_key_are_as_well(
    num_queries: int, num_keys: int
) -> None:
    """Where many keys share the weight, logarithms of weights are far from zero, and rounded."""
    assert max(errors(random_heads(num_queries, num_keys, 4, 2))) < 2e-2


def test_scores_far_from_zero_lose_no_precision() -> None:
    """Rounded to bf16 before the normalizer is subtracted, they would be off by 0.06."""
    query, key, value, gradient = random_heads(100, 100, 4, 2)
    key = key + 8 * query[:1, :1] / query[:1, :1].norm()
    query = query + 8 * query[:1, :1] / query[:1, :1].norm()
    heads = [query, key, value, gradient]

    assert (query.double() @ key[:1].double().transpose(1, 2)).max() * SCALING > 15
    assert max(errors(heads, is_causal=True)) < 1.5e-2


def test_only_long_sequences_in_bf16_take_them() -> None:
    assert takes_products(torch.bfloat16, 96, 96)
    assert not takes_products(torch.bfloat16, 95, 96)
    assert not takes_products(torch.float32, 500, 500)


def gradients(
    lengths: Sequence[int], heads: Sequence[Tensor], weights_TNH: Tensor
) -> tuple[Tensor, ...]:
    query, key, value = (each.clone().requires_grad_() for each in heads)
    plan = PackedAttention([0, *accumulate(lengths)])
    attended_TNH = plan.attend(0, query, key, value, SCALING, None)
    return torch.autograd.grad(attended_TNH, (query, key, value), weights_TNH)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_sequence_has_the_same_bits_alone_and_in_any_pack(num_threads: int) -> None:
    rng = random.Random(0)
    for _ in range(12):
        lengths = [rng.choice([7, 40, 96, 97, 97, 130, 300]) for _ in range(5)]
        num_kv_heads, head_size = rng.choice([1, 2, 3]), rng.choice([16, 24, 5])
        shape = (sum(lengths), 2 * num_kv_heads, head_size)
        weights_TNH = torch.randn(shape).bfloat16()
        heads = [
            torch.randn(sum(lengths), count, head_size).bfloat16().transpose(0, 1)
            for count in (2 * num_kv_heads, num_kv_heads, num_kv_heads)
        ]
        with threads(num_threads):
            together = gradients(lengths, heads, weights_TNH)
            for start, stop in pairwise([0, *accumulate(lengths)]):
                own = [each[:, start:stop] for each in heads]
                alone = gradients([stop - start], own, weights_TNH[start:stop])

                for mine, ours in zip(alone, together, strict=True):
                    assert torch.equal(mine, ours[:, start:stop])


def test_a_neighbour_that_has_diverged_leaves_a_sequence_alone() -> None:
    lengths = [100, 130]
    heads = [torch.randn(230, count, 16).bfloat16().transpose(0, 1) for count in (4, 2, 2)]
    for each in heads:
        each[:, :100] = torch.inf

    found = gradients(lengths, heads, torch.randn(230, 4, 16).bfloat16())

    assert all(each[:, 100:].isfinite().all() for each in found)
