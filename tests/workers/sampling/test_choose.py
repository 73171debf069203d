from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_workers.sampling.choose import DrawRule, choose, logprobs_of

PLAIN = DrawRule()


def random_logits(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * scale


def evenly_spaced(num_draws: int) -> Tensor:
    """Uniforms that hit every token as often as its probability says, up to one draw."""
    return (torch.arange(num_draws, dtype=torch.float64) + 0.5)[None] / num_draws


def frequencies(logits: Tensor, rule: DrawRule, num_draws: int = 20_000) -> Tensor:
    tokens, _ = choose(logits[None], [rule], evenly_spaced(num_draws))
    return torch.bincount(tokens[0], minlength=logits.shape[0]) / num_draws


def expected_distribution(logits: Tensor, rule: DrawRule) -> Tensor:
    """The textbook rule on one row: scale, keep top_k, keep top_p of the rest, renormalise."""
    probabilities: list[float] = torch.softmax(logits.double() / rule.temperature, 0).tolist()
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)
    if rule.top_k:
        order = order[: rule.top_k]
    mass = sum(probabilities[token] for token in order)
    kept: list[int] = []
    before = 0.0
    for token in order:
        if kept and before >= rule.top_p * mass:
            break
        kept.append(token)
        before += probabilities[token]
    expected = torch.zeros(len(probabilities), dtype=torch.float64)
    for token in kept:
        expected[token] = probabilities[token] / before
    return expected


@pytest.mark.parametrize(
    "rule",
    [
        PLAIN,
        DrawRule(temperature=0.5),
        DrawRule(temperature=3.0),
        DrawRule(top_k=1),
        DrawRule(top_k=5),
        DrawRule(top_k=1000),
        DrawRule(top_p=0.0),
        DrawRule(top_p=0.3),
        DrawRule(top_p=0.95),
        DrawRule(temperature=0.7, top_k=8, top_p=0.6),
    ],
)
def test_tokens_are_drawn_as_often_as_the_truncated_distribution_says(rule: DrawRule) -> None:
    logits = random_logits(1, 23)[0]

    assert torch.allclose(
        expected_distribution(logits, rule).float(), frequencies(logits, rule), atol=1.01e-4
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.7)])
def test_logprobs_are_of_the_scaled_distribution_before_truncation(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = random_logits(6, 50)
    rules = [DrawRule(temperature, top_k, top_p)] * 6
    uniforms = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    tokens, logprobs = choose(logits, rules, uniforms)

    expected = torch.log_softmax(logits.double() / temperature, -1).gather(1, tokens)
    assert torch.allclose(expected.float(), logprobs, atol=1e-5)


def test_temperature_zero_takes_the_maximum_with_its_logprob_at_temperature_one() -> None:
    logits = random_logits(5, 40)

    tokens, logprobs = choose(
        logits, [DrawRule(0.0, 3, 0.1)] * 5, torch.full((5, 1), 0.99).double()
    )

    assert logits.argmax(-1).tolist() == tokens[:, 0].tolist()
    expected = torch.log_softmax(logits, -1).gather(1, tokens)
    assert torch.allclose(expected, logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-300, 1e-12])
def test_a_tiny_temperature_is_finite_and_takes_the_maximum(temperature: float) -> None:
    logits = random_logits(4, 30)

    tokens, logprobs = choose(logits, [DrawRule(temperature)] * 4, torch.full((4, 1), 0.5).double())

    assert logits.argmax(-1).tolist() == tokens[:, 0].tolist()
    assert logprobs[:, 0].tolist() == [0.0] * 4


def test_a_row_has_the_same_bits_alone_as_among_rows_with_other_rules() -> None:
    logits = random_logits(40, 1003)
    rules = [
        DrawRule((0.0, 0.6, 1.0, 1.7)[i % 4], (0, 0, 7, 50, 900)[i % 5], (1.0, 0.9, 0.2)[i % 3])
        for i in range(40)
    ]
    uniforms = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tokens, logprobs = choose(logits, rules, uniforms)

    for row in range(40):
        mine = slice(row, row + 1)
        alone = choose(logits[mine].clone(), rules[mine], uniforms[mine])
        assert torch.equal(tokens[mine], alone[0])
        assert torch.equal(logprobs[mine], alone[1])


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-52])
def test_the_ends_of_the_uniform_range_draw_possible_tokens(uniform: float) -> None:
    logits = random_logits(3, 60)
    logits[:, :10] = float("-inf")
    logits[:, 50:] = float("-inf")
    uniforms = torch.full((3, 1), uniform, dtype=torch.float64)

    for rule in (PLAIN, DrawRule(top_k=55), DrawRule(top_p=0.999)):
        tokens, logprobs = choose(logits, [rule] * 3, uniforms)

        assert bool(((tokens >= 10) & (tokens < 50)).all())
        assert bool(logprobs.isfinite().all())


def test_an_improbable_token_of_a_large_vocabulary_can_be_drawn() -> None:
    """fp32 sums would give the last tokens no room at all."""
    vocab_size = 100_000
    logits = torch.zeros(1, vocab_size)
    logits[0, 0] = 18.0

    tokens, _ = choose(logits, [PLAIN], evenly_spaced(vocab_size * 10))

    expected = 1 / (float(np.exp(18.0)) + vocab_size - 1) * vocab_size * 10
    in_the_tail = int((tokens >= vocab_size // 2).sum())
    assert expected * vocab_size / 2 == pytest.approx(in_the_tail, rel=0.01)


@pytest.mark.parametrize("rule", [PLAIN, DrawRule(0.0), DrawRule(top_k=3), DrawRule(top_p=0.5)])
def test_logits_that_are_not_numbers_show_in_the_logprob_of_their_row_only(rule: DrawRule) -> None:
    logits = random_logits(3, 20)
    logits[1, 4] = float("nan")
    uniforms = torch.full((3, 1), 0.5, dtype=torch.float64)

    tokens, logprobs = choose(logits, [rule] * 3, uniforms)

    assert logprobs[:, 0].isfinite().tolist() == [True, False, True]
    assert bool((tokens < 20).all())


def test_logprobs_of_one_row_have_the_bits_of_many() -> None:
    """A single row of a large vocabulary would be summed in parts, one per thread."""
    torch.set_num_threads(2)
    logits = random_logits(100, 65_537)
    tokens = torch.arange(100)[:, None]
    together = logprobs_of(logits, tokens)

    alone = [logprobs_of(logits[i : i + 1], tokens[i : i + 1]) for i in range(100)]

    assert torch.equal(together, torch.cat(alone))


def test_several_draws_of_one_row_equal_one_draw_of_several_equal_rows() -> None:
    logits = random_logits(1, 33)
    uniforms = torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64)

    together: Sequence[Tensor] = choose(logits, [PLAIN], uniforms)

    separate = choose(logits.expand(3, -1).contiguous(), [PLAIN] * 3, uniforms.T.contiguous())
    assert torch.equal(together[0].T, separate[0])
    assert torch.equal(together[1].T, separate[1])
