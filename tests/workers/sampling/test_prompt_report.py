"""What is reported of a prompt beside its own tokens, against a plain forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_core.errors import UserError
from cyclora_core.payload import Array
from cyclora_core.samples import NO_TOPK_LOGPROB, Cells, PromptTargets, SampleResult
from workers.sampling.builders import (
    VOCAB_SIZE,
    TinyModel,
    body,
    plain_logprobs,
    random_tokens,
    sample,
    sampler,
    tokens_of,
)

PROMPT = random_tokens(200, 4)
"""Several chunks of prefill and of logits."""


def reference(model: TinyModel, prompt: Array = PROMPT) -> Tensor:
    """Row i is the distribution of prompt token i + 1."""
    return plain_logprobs(model.plain, prompt)[:-1]


def reported(model: TinyModel, **options: Any) -> SampleResult:
    request = body(PROMPT, **{"max_tokens": 1, **options})
    return sample(model.base_model, request, prefill_chunk_tokens=128)


def dense(rows: int, columns: int, seed: int = 0) -> PromptTargets:
    """About one cell in three names no token."""
    tokens = np.random.default_rng(seed).integers(-VOCAB_SIZE // 2, VOCAB_SIZE, (rows, columns))
    return PromptTargets(Cells(rows, columns), np.maximum(tokens, -1).reshape(-1))


@pytest.mark.parametrize("num_columns", [1, 5])
def test_named_tokens_have_the_logprobs_of_a_plain_forward(
    qwen3: TinyModel, num_columns: int
) -> None:
    targets = dense(len(PROMPT) - 1, num_columns)

    result = reported(qwen3, targets=targets)

    assert result.targets is not None
    tokens = torch.from_numpy(targets.tokens).view(-1, num_columns)
    expected = reference(qwen3).gather(1, tokens.clamp(min=0)).where(tokens >= 0, 0.0)
    got = result.targets.logprobs.reshape(-1, num_columns)
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-5)
    assert (got[tokens.numpy() < 0] == 0).all()
    assert result.prompt_logprobs is None


def test_sparse_cells_are_answered_where_they_stand(qwen3: TinyModel) -> None:
    """Two in row 70, one in the last row; the other rows hold none."""
    num_rows = len(PROMPT) - 1
    counts = np.zeros(num_rows, np.int64)
    counts[[70, num_rows - 1]] = [2, 1]
    cells = Cells(num_rows, 9, np.concatenate([[0], counts.cumsum()]), np.asarray([0, 8, 4]))

    result = reported(qwen3, targets=PromptTargets(cells, np.asarray([50, -1, 51])))

    assert result.targets is not None
    rows = reference(qwen3)
    expected = [float(rows[70, 50]), 0.0, float(rows[-1, 51])]
    np.testing.assert_allclose(result.targets.logprobs, expected, rtol=0, atol=1e-5)
    assert result.targets.cells is cells


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_alternatives_carry_the_models_logprobs_at_temperature_one(
    qwen3: TinyModel, temperature: float
) -> None:
    result = reported(qwen3, prompt_alt_tokens_k=3, temperature=temperature, top_k=1)

    assert result.alt_tokens is not None
    assert result.alt_logprobs is not None
    assert result.alt_tokens.shape == (len(PROMPT) - 1, 3)
    expected = reference(qwen3).gather(1, torch.from_numpy(result.alt_tokens).long())
    np.testing.assert_allclose(result.alt_logprobs, expected.numpy(), rtol=0, atol=1e-5)


def test_alternatives_follow_the_temperature_scaled_distribution(qwen3: TinyModel) -> None:
    """Chi-square of 4000 draws at one position; truncation of the sample does not touch them."""
    num_draws, temperature = 4000, 0.8
    request = body(PROMPT[:2], prompt_alt_tokens_k=num_draws, temperature=temperature, top_p=0.1)

    drawn = sample(qwen3.base_model, request).alt_tokens

    assert drawn is not None
    expected = (reference(qwen3, PROMPT[:2])[0] / temperature).softmax(-1).double().numpy()
    observed = np.bincount(drawn[0], minlength=VOCAB_SIZE)
    common = expected * num_draws >= 5
    pooled = [*expected[common] * num_draws, expected[~common].sum() * num_draws]
    counts = [*observed[common], observed[~common].sum()]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(counts, pooled, strict=True))
    degrees = len(pooled) - 1
    assert degrees > 20
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def test_greedy_alternatives_are_the_most_probable_token(qwen3: TinyModel) -> None:
    result = reported(qwen3, prompt_alt_tokens_k=2, temperature=0.0)

    assert result.alt_tokens is not None
    best = reference(qwen3).argmax(-1).numpy()
    assert np.array_equal(result.alt_tokens, np.stack([best, best], 1))


def test_alternatives_leave_the_sampled_tokens_alone(qwen3: TinyModel) -> None:
    with_some = reported(qwen3, max_tokens=10, num_samples=2, prompt_alt_tokens_k=2)
    without = reported(qwen3, max_tokens=10, num_samples=2)

    assert [tokens_of(s) for s in with_some.sequences] == [tokens_of(s) for s in without.sequences]


def test_another_seed_draws_other_alternatives(qwen3: TinyModel) -> None:
    one, other = (reported(qwen3, prompt_alt_tokens_k=1, seed=seed) for seed in (1, 2))

    assert one.alt_tokens is not None
    assert other.alt_tokens is not None
    assert not np.array_equal(one.alt_tokens, other.alt_tokens)


@pytest.mark.parametrize("last_n", [1, 5, 130, len(PROMPT) - 1])
def test_only_the_last_n_tokens_are_scored(qwen3: TinyModel, last_n: int) -> None:
    whole = reported(qwen3, prompt_logprobs=True, topk_prompt_logprobs=2)

    last = reported(
        qwen3, prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=last_n
    )

    assert last.prompt_logprobs is not None
    assert last.topk_prompt_logprobs is not None
    assert np.isnan(last.prompt_logprobs[:-last_n]).all()
    assert (last.topk_prompt_logprobs[:-last_n] == NO_TOPK_LOGPROB).all()
    for name in ("prompt_logprobs", "topk_prompt_tokens", "topk_prompt_logprobs"):
        assert getattr(whole, name)[-last_n:].tobytes() == getattr(last, name)[-last_n:].tobytes()


def test_the_last_n_blank_neither_targets_nor_alternatives(qwen3: TinyModel) -> None:
    targets = dense(len(PROMPT) - 1, 2)
    asked: dict[str, Any] = {"targets": targets, "prompt_alt_tokens_k": 1, "prompt_logprobs": True}
    whole = reported(qwen3, **asked)

    last = reported(qwen3, **asked, prompt_logprobs_last_n=1)

    assert whole.targets is not None
    assert last.targets is not None
    assert np.array_equal(whole.targets.logprobs, last.targets.logprobs)
    assert np.array_equal(whole.alt_logprobs, last.alt_logprobs)  # type: ignore[arg-type]


def test_a_prompt_of_one_token_has_nothing_to_report(qwen3: TinyModel) -> None:
    request = body([7], prompt_alt_tokens_k=2, prompt_logprobs=True, targets=dense(0, 3))

    result = sample(qwen3.base_model, request)

    assert result.alt_tokens is not None
    assert result.targets is not None
    assert result.alt_tokens.shape == (0, 2)
    assert result.targets.logprobs.size == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": dense(5, 1)}, "has 5 rows; expected .* 199"),
        (
            {"targets": PromptTargets(Cells(199, 1), np.full(199, VOCAB_SIZE))},
            "not in \\[-1, 101\\)",
        ),
        ({"prompt_alt_tokens_k": -1}, "must not be negative"),
        ({"topk_sample_logprobs": VOCAB_SIZE + 1}, "topk_sample_logprobs is 102"),
    ],
)
def test_what_would_fail_in_the_shared_pass_is_refused_before(
    qwen3: TinyModel, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        sampler(qwen3.base_model).admit("bad", body(PROMPT, **options), None)
