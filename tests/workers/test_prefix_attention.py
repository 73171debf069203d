"""Attention with shared prefixes against attention of each datum by itself.

Legend: R rows of a block, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cyclora_workers import attention_parts
from cyclora_workers.attention_parts import attend_part, part_gradients
from cyclora_workers.prefix_attention import training_attention
from cyclora_workers.prefix_tree import PrefixTree

SCALING = 0.3
GROUP = [0, 5, 5, 5]
NESTED = [0, 6, 20, 10, 3, 40, 0, 7]
PLAIN: list[int] = []


def tree(shared: Sequence[int], sizes: Sequence[int]) -> PrefixTree:
    return PrefixTree([np.zeros(size, np.int32) for size in sizes], shared)


TREES = {
    "group": tree(GROUP, [9, 12, 6, 45]),
    "nested": tree(NESTED, [21, 50, 24, 60, 41, 41, 30, 8]),
    "a datum that is a prefix": tree([0, 8, 20], [8, 20, 33]),
}


def random_heads(num_rows: int, head_size: int = 16, seed: int = 0) -> list[Tensor]:
    """Four query heads and two of keys and values, laid out as a model's projections are."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_rows, count, head_size, generator=generator).transpose(0, 1)
        for count in (4, 2, 2)
    ]


def reference(of: PrefixTree, heads: Sequence[Tensor], window: int | None) -> Tensor:
    """Every datum by itself; rows that several run through get the same from each."""
    query, key, value = heads
    out_RNH = torch.zeros(of.num_rows, *query.shape[::2])
    rows_N = torch.from_numpy(of.rows_N)
    for path in rows_N.split(of.sizes):
        distance = torch.arange(len(path))[:, None] - torch.arange(len(path))
        hidden = (distance < 0) | (distance >= (window or len(path)))
        keys, values = (each[:, path].repeat_interleave(2, 0) for each in (key, value))
        scores = (query[:, path] @ keys.transpose(1, 2) * SCALING).masked_fill(hidden, -torch.inf)
        attended = (scores.softmax(-1) @ values).transpose(0, 1)
        out_RNH = out_RNH.index_put((path,), attended)
    return out_RNH


def ours(trees: Sequence[PrefixTree], heads: Sequence[Tensor], window: int | None = None) -> Tensor:
    query, key, value = heads
    plan = training_attention(
        trees, device=query.device, dtype=query.dtype, head_size=query.shape[2]
    )
    return plan.attend(0, query, key, value, SCALING, window)


@pytest.mark.parametrize("window", [None, 1, 4, 7, 1000])
@pytest.mark.parametrize("name", TREES)
def test_output_and_gradients_equal_those_of_each_datum_by_itself(
    name: str, window: int | None
) -> None:
    of = TREES[name]
    heads = random_heads(of.num_rows)
    weights_RNH = torch.randn(of.num_rows, 4, 16)
    found: list[tuple[Tensor, ...]] = []
    for is_ours in (True, False):
        leaves = [each.clone().requires_grad_() for each in heads]
        attended_RNH = ours([of], leaves, window) if is_ours else reference(of, leaves, window)
        loss = (attended_RNH * weights_RNH).sum()
        found.append((attended_RNH, *torch.autograd.grad(loss, leaves)))

    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_size", [16, 5])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_has_the_same_bits_alone_and_among_others(
    window: int | None, head_size: int, dtype: torch.dtype
) -> None:
    trees = [TREES["group"], tree(PLAIN, [40, 40, 7]), TREES["nested"], TREES["group"]]
    sizes = [each.num_rows for each in trees]
    heads = [each.to(dtype) for each in random_heads(sum(sizes) + 11, head_size)]
    weights_RNH = torch.randn(sum(sizes) + 11, 4, head_size).to(dtype)
    leaves = [each.clone().requires_grad_() for each in heads]
    together = ours(trees, leaves, window)
    gradients = torch.autograd.grad((together * weights_RNH).sum(), leaves)
    assert not together[sum(sizes) :].any()

    for start, stop, each in zip(
        np.cumsum([0, *sizes]).tolist(), np.cumsum(sizes).tolist(), trees, strict=False
    ):
        alone = [head[:, start:stop].clone().requires_grad_() for head in heads]
        attended = ours([each], alone, window)
        own = torch.autograd.grad((attended * weights_RNH[start:stop]).sum(), alone)

        assert torch.equal(attended, together[start:stop])
        for mine, all_of_them in zip(own, gradients, strict=True):
            assert torch.equal(mine, all_of_them[:, start:stop])


@pytest.mark.parametrize("is_causal", [True, False])
def test_products_written_out_give_what_the_kernel_gives(
    is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_parts, "_MAX_SCORES", 200)
    query, key, value = random_heads(40)
    query = query if is_causal else torch.cat((query, query.flip(1)), 1)
    out, lse = attend_part(query, key, value, SCALING, is_causal=is_causal)
    gradient = torch.randn(out.shape)

    written = attention_parts._written_out(query, key, value, SCALING, is_causal=is_causal)  # pyright: ignore[reportPrivateUsage]

    torch.testing.assert_close(written, (out, lse), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        attention_parts._gradients_written_out(  # pyright: ignore[reportPrivateUsage]
            gradient, query, key, value, out, lse, SCALING, is_causal=is_causal
        ),
        part_gradients(gradient, query, key, value, out, lse, SCALING, is_causal=is_causal),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [40, 600])
def test_a_part_in_bf16_is_as_near_as_bf16_is(size: int) -> None:
    """The smaller one is computed in fp32, the larger one by torch's kernel for bf16."""
    heads = [each.bfloat16() for each in random_heads(size)]
    exact = [each.double() for each in heads]
    keys, values = (each.repeat_interleave(2, 0) for each in exact[1:])
    expected = functional.scaled_dot_product_attention(
        exact[0], keys, values, is_causal=True, scale=SCALING
    )

    out, _ = attend_part(heads[0], heads[1], heads[2], SCALING, is_causal=True)

    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
