"""The most probable tokens beside each sampled one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.sampling.builders import (
    TinyModel,
    body,
    plain_logprobs,
    random_tokens,
    sample,
    tokens_of,
)

PROMPT = random_tokens(20, 1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_top_k_belong_to_the_temperature_scaled_distribution(
    qwen3: TinyModel, temperature: float, num_samples: int
) -> None:
    request = body(
        PROMPT, num_samples=num_samples, topk_sample_logprobs=4, temperature=temperature, top_k=2
    )

    result = sample(qwen3.base_model, request)

    for sequence in result.sequences:
        tokens = [*PROMPT.tolist(), *tokens_of(sequence)]
        unscaled = plain_logprobs(qwen3.plain, tokens)[len(PROMPT) - 1 : -1]
        top = torch.log_softmax(unscaled / temperature, -1).topk(4, -1)
        assert sequence.topk is not None
        assert np.array_equal(sequence.topk.tokens, top.indices.numpy())
        np.testing.assert_allclose(
            sequence.topk.logprobs, top.values.numpy(), rtol=0, atol=1e-5 / min(temperature, 1.0)
        )


def test_a_sampled_token_has_the_same_logprob_to_the_bit_in_its_top_k(qwen3: TinyModel) -> None:
    request = body(PROMPT, num_samples=2, topk_sample_logprobs=3, temperature=0.6, top_k=3)

    for sequence in sample(qwen3.base_model, request).sequences:
        assert sequence.topk is not None
        own = sequence.topk.tokens == sequence.tokens[:, None]
        assert own.sum(1).tolist() == [1] * 8
        assert sequence.topk.logprobs[own].tobytes() == sequence.logprobs.tobytes()


def test_greedy_samples_report_the_unscaled_distribution(qwen3: TinyModel) -> None:
    request = body(PROMPT, topk_sample_logprobs=2, temperature=0.0)

    (sequence,) = sample(qwen3.base_model, request).sequences

    assert sequence.topk is not None
    assert np.array_equal(sequence.topk.tokens[:, 0], sequence.tokens)
    assert sequence.topk.logprobs[:, 0].tobytes() == sequence.logprobs.tobytes()


def test_a_sequence_that_stops_early_has_a_row_for_each_of_its_tokens(qwen3: TinyModel) -> None:
    request = body(
        PROMPT, num_samples=8, max_tokens=40, topk_sample_logprobs=2, stop_token_ids=[10, 20, 30]
    )

    sequences = sample(qwen3.base_model, request).sequences

    assert len({len(sequence.tokens) for sequence in sequences}) > 1
    for sequence in sequences:
        assert sequence.topk is not None
        assert sequence.topk.tokens.shape == (len(sequence.tokens), 2)


def test_nothing_is_reported_unless_asked(qwen3: TinyModel) -> None:
    (sequence,) = sample(qwen3.base_model, body(PROMPT)).sequences

    assert sequence.topk is None
