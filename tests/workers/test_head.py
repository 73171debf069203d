"""The fused head against log_softmax over all logits, left to autograd.

Legend: T packed tokens, K targets per token, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cyclora_core.operations import LoraConfig
from cyclora_workers.adapter import (
    AdapterLayout,
    AdapterWeights,
    ModuleGroup,
    TargetModule,
)
from cyclora_workers.context import Segment
from cyclora_workers.head import (
    HeadPiece,
    HeadResult,
    Unembedding,
    fused_head,
    log_normalizers,
)
from cyclora_workers.logit_rule import NO_RULE, LogitRule
from cyclora_workers.losses import TokenLoss
from parity.tolerances import FORWARD, GRADIENT, close

HIDDEN, VOCAB = 32, 53
FP32 = torch.float32
RULES = [NO_RULE, LogitRule(0.4), LogitRule(cap=3.0), LogitRule(1.7, 5.0)]
MODULES = [TargetModule("lm_head", HIDDEN, VOCAB, ModuleGroup.UNEMBED)]


def adapter(rank: int, dtype: torch.dtype = FP32) -> AdapterWeights:
    layout = AdapterLayout(MODULES, LoraConfig(rank))
    generator = torch.Generator().manual_seed(rank)
    flat_P = (torch.randn(layout.num_elements, generator=generator) * 0.2).to(dtype)
    return layout.weights(flat_P, torch.zeros(layout.num_elements))


def unembedding(
    dtype: torch.dtype = FP32, *, bias: bool = False, rule: LogitRule = NO_RULE
) -> Unembedding:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator).to(dtype)
    return Unembedding("lm_head", weight, torch.randn(VOCAB).to(dtype) if bias else None, rule)


def piece(segment: Segment, coefficient_NK: Tensor, seed: int = 0) -> HeadPiece:
    """A loss that is linear in the logprobs, with the coefficients given."""
    generator = torch.Generator().manual_seed(seed)
    targets_NK = torch.randint(0, VOCAB, coefficient_NK.shape, generator=generator)
    return HeadPiece(
        segment, targets_NK, lambda logprobs: TokenLoss(coefficient_NK * logprobs, coefficient_NK)
    )


def coefficients(num_rows: int, num_targets: int = 1) -> Tensor:
    """A third of the rows have none."""
    found = torch.randn(num_rows, num_targets, generator=torch.Generator().manual_seed(num_rows))
    found[::3] = 0.0
    return found


def mixed(dtype: torch.dtype = FP32) -> list[HeadPiece]:
    segments = [
        Segment(0, 1, adapter(4, dtype)),
        Segment(1, 40, adapter(1, dtype)),
        Segment(40, 47, None),
        Segment(47, 75, adapter(8, dtype)),
    ]
    widths = (1, 1, 3, 2)
    return [
        piece(segment, coefficients(segment.stop - segment.start, width), index)
        for index, (segment, width) in enumerate(zip(segments, widths, strict=True))
    ]


def hidden(num_rows: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(num_rows, HIDDEN, generator=torch.Generator().manual_seed(7)).to(dtype)


def reference(
    head: Unembedding, hidden_TD: Tensor, pieces: Sequence[HeadPiece]
) -> tuple[list[Tensor], list[Tensor], Tensor, list[tuple[Tensor, Tensor]]]:
    """Logprobs, losses, d loss / d hidden, and the gradients of A and B per adapted piece."""
    leaf_TD = hidden_TD.float().requires_grad_()
    logprobs: list[Tensor] = []
    losses: list[Tensor] = []
    leaves: list[tuple[Tensor, Tensor]] = []
    for each in pieces:
        rows_ND = leaf_TD[each.segment.start : each.segment.stop]
        logits = rows_ND @ head.weight_VD.float().T
        if head.bias_V is not None:
            logits = logits + head.bias_V.float()
        if each.segment.adapter is not None:
            module = each.segment.adapter.modules["lm_head"]
            lora_A = module.lora_A_RD.float().requires_grad_()
            lora_B = module.lora_B_FR.float().requires_grad_()
            leaves.append((lora_A, lora_B))
            logits = logits + each.segment.adapter.scaling * rows_ND @ lora_A.T @ lora_B.T
        logits = logits * head.rule.factor
        if head.rule.cap is not None:
            logits = torch.tanh(logits / head.rule.cap) * head.rule.cap
        logprobs.append(logits.log_softmax(-1).gather(1, each.targets_NK))
        losses.append(each.loss(logprobs[-1]).loss.sum())
    torch.stack(losses).sum().backward()
    assert leaf_TD.grad is not None
    gradients: list[tuple[Tensor, Tensor]] = []
    for lora_A, lora_B in leaves:
        assert lora_A.grad is not None
        assert lora_B.grad is not None
        gradients.append((lora_A.grad, lora_B.grad))
    return logprobs, losses, leaf_TD.grad, gradients


def run(
    head: Unembedding, pieces: Sequence[HeadPiece], hidden_TD: Tensor, max_chunk_rows: int = 512
) -> HeadResult:
    return fused_head(head, hidden_TD, pieces, needs_gradient=True, max_chunk_rows=max_chunk_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("max_chunk_rows", [8, 512])
@pytest.mark.parametrize("rule", RULES, ids=["plain", "factor", "cap", "both"])
def test_everything_matches_autograd_over_all_logits(
    dtype: torch.dtype, bias: bool, max_chunk_rows: int, rule: LogitRule
) -> None:
    head, pieces = unembedding(dtype, bias=bias, rule=rule), mixed(dtype)
    hidden_TD = hidden(75, dtype)

    result = run(head, pieces, hidden_TD, max_chunk_rows)

    logprobs, losses, gradient_TD, gradients = reference(head, hidden_TD, pieces)
    for ours, theirs, loss in zip(result.pieces, logprobs, losses, strict=True):
        close(ours.logprobs_NK, theirs, FORWARD[dtype])
        assert ours.loss_sum.item() == pytest.approx(loss.item(), rel=0.02, abs=0.3)
    assert result.gradient_TD is not None
    close(result.gradient_TD, gradient_TD, GRADIENT[dtype])
    adapted = [p.segment.adapter.modules["lm_head"] for p in pieces if p.segment.adapter]
    for module, (gradient_A, gradient_B) in zip(adapted, gradients, strict=True):
        assert module.gradient_A_RD is not None
        assert module.gradient_B_FR is not None
        close(module.gradient_A_RD, gradient_A, GRADIENT[dtype])
        close(module.gradient_B_FR, gradient_B, GRADIENT[dtype])


def test_the_chunk_size_changes_no_bit() -> None:
    results: list[tuple[HeadResult, Tensor]] = []
    for max_chunk_rows in (1, 40, 512):
        pieces = mixed()
        result = run(unembedding(), pieces, hidden(75), max_chunk_rows)
        module = pieces[3].segment.adapter.modules["lm_head"]  # type: ignore[union-attr]
        assert module.gradient_B_FR is not None
        results.append((result, module.gradient_B_FR))

    first, first_gradient = results[0]
    for result, gradient in results[1:]:
        assert torch.equal(result.gradient_TD, first.gradient_TD)  # type: ignore[arg-type]
        assert torch.equal(gradient, first_gradient)
        for ours, theirs in zip(result.pieces, first.pieces, strict=True):
            assert torch.equal(ours.logprobs_NK, theirs.logprobs_NK)
            assert torch.equal(ours.loss_sum, theirs.loss_sum)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("num_neighbour_rows", [1, 2, 7, 37])
@pytest.mark.parametrize("rule", RULES, ids=["plain", "factor", "cap", "both"])
def test_a_piece_has_the_same_bits_wherever_its_rows_begin(
    rank: int, num_neighbour_rows: int, rule: LogitRule
) -> None:
    """Rows of an odd vocabulary lie anywhere in memory; with rank 1, sums over it would show."""
    neighbour = piece(Segment(0, num_neighbour_rows, None), torch.ones(num_neighbour_rows, 1))
    found: list[tuple[Tensor | None, Tensor | None]] = []
    for before in ([], [neighbour]):
        weights = adapter(rank)
        start = num_neighbour_rows if before else 0
        own_TD = hidden(60)
        hidden_TD = torch.cat([hidden(start), own_TD])
        mine = piece(Segment(start, start + 60, weights), torch.ones(60, 1), 1)
        result = run(unembedding(rule=rule), [*before, mine], hidden_TD)
        assert result.gradient_TD is not None
        found.append((result.gradient_TD[start:], weights.modules["lm_head"].gradient_A_RD))

    for alone, beside in zip(*found, strict=True):
        assert alone is not None
        assert beside is not None
        assert torch.equal(alone, beside)


def test_rows_without_a_coefficient_get_no_gradient() -> None:
    result = run(unembedding(), mixed(), hidden(75))

    assert result.gradient_TD is not None
    coefficient_rows = torch.cat([coefficients(n)[:, 0] for n in (1, 39, 7, 28)])
    assert not result.gradient_TD[coefficient_rows == 0].any()
    assert result.gradient_TD[coefficient_rows != 0].any(1).all()


def test_an_adapter_whose_coefficients_are_all_zero_gets_no_gradient() -> None:
    weights = adapter(4)
    pieces = [
        piece(Segment(0, 5, weights), torch.zeros(5, 1)),
        piece(Segment(5, 9, adapter(2)), torch.ones(4, 1)),
    ]

    run(unembedding(), pieces, hidden(9))

    module = weights.modules["lm_head"]
    assert module.gradient_A_RD is not None
    assert not module.gradient_A_RD.any()


def test_one_target_twice_counts_twice() -> None:
    weights = adapter(4)
    segment, hidden_TD = Segment(0, 1, weights), hidden(1)
    targets_NK = torch.tensor([[5, 5]])
    halves = torch.full((1, 2), -0.5)
    twice = HeadPiece(segment, targets_NK, lambda lp: TokenLoss(halves * lp, halves))
    whole = torch.full((1, 1), -1.0)
    once = HeadPiece(segment, targets_NK[:, :1], lambda lp: TokenLoss(whole * lp, whole))

    ours, theirs = (run(unembedding(), [each], hidden_TD).gradient_TD for each in (twice, once))

    torch.testing.assert_close(ours, theirs)


def test_without_gradient_the_logprobs_are_the_same_and_nothing_is_accumulated() -> None:
    weights = adapter(4)
    pieces = [piece(Segment(0, 9, weights), torch.ones(9, 1))]
    forward = fused_head(unembedding(), hidden(9), pieces, needs_gradient=False)
    module = weights.modules["lm_head"]
    assert module.gradient_B_FR is not None

    assert forward.gradient_TD is None
    assert not module.gradient_B_FR.any()
    with_gradient = run(unembedding(), pieces, hidden(9))
    assert torch.equal(forward.pieces[0].logprobs_NK, with_gradient.pieces[0].logprobs_NK)


@pytest.mark.parametrize("row", [0, 1, 46, 74])
def test_logits_of_a_single_row_give_the_fused_heads_bits(row: int) -> None:
    """What a sampler computes for one row is what training computes for it among many."""
    head, pieces, hidden_TD = unembedding(), mixed(), hidden(75)
    fused = run(head, pieces, hidden_TD)
    index = next(i for i, p in enumerate(pieces) if p.segment.start <= row < p.segment.stop)
    padded_TD = torch.zeros(32, HIDDEN)
    padded_TD[0] = hidden_TD[row]

    alone = head.adapters([Segment(0, 1, pieces[index].segment.adapter)])
    logits_TV, _ = head.logits(padded_TD, alone)
    logprobs_V = (logits_TV[:1] - log_normalizers(logits_TV[:1]))[0]

    local = row - pieces[index].segment.start
    expected_K = fused.pieces[index].logprobs_NK[local]
    assert torch.equal(logprobs_V[pieces[index].targets_NK[local]], expected_K)
