"""Packed attention against a loop over sequences and positions.

Legend: T packed tokens, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn

from cyclora_workers.attention import PackedAttention, UnsupportedAttention, attention_forward
from cyclora_workers.context import PassContext

SCALING = 0.3
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 16


def random_heads(
    num_rows: int, seed: int = 0, head_size: int = HEAD_SIZE
) -> tuple[Tensor, Tensor, Tensor]:
    """Laid out as a model's projections are: tokens first, then viewed as heads first."""
    generator = torch.Generator().manual_seed(seed)

    def heads(count: int) -> Tensor:
        shape = (num_rows, count, head_size)
        return torch.randn(shape, generator=generator).transpose(0, 1)

    return heads(HEADS), heads(KV_HEADS), heads(KV_HEADS)


def plan(lengths: Sequence[int]) -> PackedAttention:
    return PackedAttention([0, *accumulate(lengths)])


def attend(lengths: Sequence[int], heads: Sequence[Tensor], window: int | None = None) -> Tensor:
    query, key, value = heads
    return plan(lengths).attend(0, query, key, value, SCALING, window)


def reference(lengths: Sequence[int], heads: Sequence[Tensor], window: int | None = None) -> Tensor:
    """Each position attends to itself and what lies before it in its own sequence."""
    query, key, value = heads
    rows: list[Tensor] = []
    for start, length in zip([0, *accumulate(lengths)], lengths, strict=False):
        for position in range(start, start + length):
            first = start if window is None else max(start, position - window + 1)
            per_head: list[Tensor] = []
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                scores = key[group, first : position + 1] @ query[head, position] * SCALING
                per_head.append(scores.softmax(0) @ value[group, first : position + 1])
            rows.append(torch.stack(per_head))
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_sequences_attend_to_themselves_only(window: int | None) -> None:
    lengths = [5, 1, 9, 9, 2]
    heads = random_heads(sum(lengths))

    attended_TNH = attend(lengths, heads, window)

    torch.testing.assert_close(attended_TNH, reference(lengths, heads, window))


@pytest.mark.parametrize("window", [None, 3])
def test_gradients_equal_those_of_the_reference(window: int | None) -> None:
    lengths = [4, 1, 6]
    heads = random_heads(sum(lengths))
    weights_TNH = torch.randn(sum(lengths), HEADS, HEAD_SIZE)
    gradients: list[Sequence[Tensor]] = []
    for function in (attend, reference):
        leaves = tuple(tensor.clone().requires_grad_() for tensor in heads)
        loss = (function(lengths, leaves, window) * weights_TNH).sum()
        gradients.append(torch.autograd.grad(loss, leaves))

    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("head_size", [HEAD_SIZE, 8, 5])
@pytest.mark.parametrize("window", [None, 7])
def test_a_sequence_has_the_same_bits_alone_and_among_others(
    window: int | None, head_size: int
) -> None:
    """Heads of 5 elements lie at other addresses beside others; 31 tokens with heads of 8 let the
    bits depend on the thread in a call that equal lengths share."""
    lengths = [3, 40, 31, 31, 31, 17]
    heads = random_heads(sum(lengths), head_size=head_size)
    together = tuple(tensor.clone().requires_grad_() for tensor in heads)
    attended_TNH = attend(lengths, together, window)
    weights_TNH = torch.randn(attended_TNH.shape)
    gradients = torch.autograd.grad((attended_TNH * weights_TNH).sum(), together)

    for start, length in zip([0, *accumulate(lengths)], lengths, strict=False):
        rows = slice(start, start + length)
        alone = tuple(tensor[:, rows].clone().requires_grad_() for tensor in heads)
        own_TNH = attend([length], alone, window)
        own = torch.autograd.grad((own_TNH * weights_TNH[rows]).sum(), alone)

        assert torch.equal(own_TNH, attended_TNH[rows])
        for mine, ours in zip(own, gradients, strict=True):
            assert torch.equal(mine, ours[:, rows])


@pytest.mark.parametrize("length", [40, 700])
def test_in_bf16_the_error_is_that_of_rounding_the_operands(length: int) -> None:
    """Whatever precision a run is computed in: 700 tokens are not cast, 40 are."""
    heads = tuple(tensor.bfloat16() for tensor in random_heads(length))
    weights_TNH = torch.randn(length, HEADS, HEAD_SIZE).bfloat16()

    def forward_backward(dtype: torch.dtype) -> list[Tensor]:
        leaves = tuple(tensor.to(dtype).requires_grad_() for tensor in heads)
        attended_TNH = attend([length], leaves)
        assert attended_TNH.dtype == dtype
        return [attended_TNH, *torch.autograd.grad(attended_TNH, leaves, weights_TNH.to(dtype))]

    found, expected = forward_backward(torch.bfloat16), forward_backward(torch.float32)

    for mine, theirs in zip(found, expected, strict=True):
        error = (mine.float() - theirs).norm() / theirs.norm()
        assert error < 1e-2


def test_surplus_rows_return_zeros_and_change_nothing() -> None:
    heads = random_heads(32)
    trimmed = tuple(tensor[:, :11] for tensor in heads)

    attended_TNH = attend([5, 6], heads)

    assert torch.equal(attended_TNH[:11], attend([5, 6], trimmed))
    assert not attended_TNH[11:].any()


@pytest.mark.parametrize(
    "argument",
    [{"softcap": 50.0}, {"position_bias": torch.zeros(4)}, {"attention_mask": torch.zeros(1)}],
)
def test_an_argument_that_would_change_the_result_is_refused(argument: dict[str, object]) -> None:
    module = nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    context = PassContext([], plan([3]))
    given: dict[str, object] = {"attention_mask": None, "dropout": 0.0, **argument}
    heads = [tensor[None] for tensor in random_heads(3)]

    with pytest.raises(UnsupportedAttention, match=next(iter(argument))):
        attention_forward(module, *heads, scaling=1.0, pass_context=context, **given)  # type: ignore[arg-type]
