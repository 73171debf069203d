"""What a sample reports beside its tokens, through the SDK, against plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from torch import Tensor
from transformers import AutoModelForCausalLM

from contract.builders import tokens
from contract.conftest import BASE_MODEL, Running
from cyclora_workers import tiny_chat

pytestmark = pytest.mark.contract

PROMPT = tokens(40, 2)
MAX_DIFFERENCE = 1e-5


@pytest.fixture(scope="module")
def plain() -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(tiny_chat.model_dir()), dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@pytest.fixture
def sampler(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=BASE_MODEL).result()


def distributions(plain: Any, ids: Sequence[int]) -> Tensor:
    """Logits [N, V] after each token."""
    with torch.no_grad():
        return plain(input_ids=torch.tensor([list(ids)])).logits[0].float()


def ask(
    sampler: tinker.SamplingClient, params: dict[str, Any] | None = None, **options: Any
) -> types.SampleResponse:
    settings: dict[str, Any] = {"max_tokens": 1, "seed": 7, "stop": [], **(params or {})}
    return sampler.sample(
        types.ModelInput.from_ints(PROMPT),
        num_samples=options.pop("num_samples", 1),
        sampling_params=types.SamplingParams(**settings),
        **options,
    ).result()


def assert_close(actual: Any, expected: Any, temperature: float = 1.0) -> None:
    """Dividing logits by a temperature divides their differences too."""
    np.testing.assert_allclose(
        np.asarray(actual, float),
        np.asarray(expected, float),
        rtol=0,
        atol=MAX_DIFFERENCE / temperature,
    )


def test_dense_targets_have_their_logprobs(sampler: tinker.SamplingClient, plain: Any) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 500, (len(PROMPT) - 1, 3)))
    ids[5], ids[:, 1] = -1, -1

    response = ask(sampler, target_prompt_logprobs=types.TensorData.from_torch(ids))

    assert response.target_prompt_logprobs is not None
    got = response.target_prompt_logprobs.to_torch()
    rows = distributions(plain, PROMPT).log_softmax(-1)[:-1]
    assert_close(got, rows.gather(1, ids.clamp(min=0)).where(ids >= 0, 0.0))
    assert response.prompt_logprobs is None


def test_sparse_targets_come_back_sparse(sampler: tinker.SamplingClient, plain: Any) -> None:
    ids = torch.full((len(PROMPT) - 1, 400), -1, dtype=torch.int64)
    ids[3, 0], ids[3, 399], ids[38, 7] = 11, 12, 13
    sent = types.TensorData.from_torch_sparse(ids, pad_value=-1)

    got = ask(sampler, target_prompt_logprobs=sent).target_prompt_logprobs

    assert got is not None
    assert (got.shape, got.sparse_crow_indices) == (sent.shape, sent.sparse_crow_indices)
    assert got.sparse_col_indices == sent.sparse_col_indices
    rows = distributions(plain, PROMPT).log_softmax(-1)
    assert_close(got.data, [rows[3, 11], rows[3, 12], rows[38, 13]])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_top_k_of_sampled_tokens_belong_to_the_scaled_distribution(
    sampler: tinker.SamplingClient, plain: Any, temperature: float
) -> None:
    response = ask(
        sampler,
        {"max_tokens": 6, "temperature": temperature},
        num_samples=2,
        topk_sample_logprobs=4,
    )

    for sequence in response.sequences:
        scaled = distributions(plain, [*PROMPT, *sequence.tokens])[len(PROMPT) - 1 : -1]
        rows = (scaled / temperature).log_softmax(-1)
        top = rows.topk(4, -1)
        assert sequence.topk_logprobs_np is not None
        assert sequence.topk_logprobs_np.token_ids.tolist() == top.indices.tolist()
        assert_close(sequence.topk_logprobs_np.logprobs, top.values, temperature)
        own = rows.gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
        assert_close(sequence.logprobs, own, temperature)


def test_alternatives_are_drawn_at_every_position(
    sampler: tinker.SamplingClient, plain: Any
) -> None:
    one, again, other = (
        ask(sampler, {"temperature": 0.7, "seed": seed}, prompt_alt_tokens_k=3).prompt_alt_tokens
        for seed in (1, 1, 2)
    )

    assert one is not None
    assert again is not None
    assert other is not None
    ids = one.tokens.to_torch()
    assert ids.shape == (len(PROMPT) - 1, 3)
    rows = distributions(plain, PROMPT).log_softmax(-1)[:-1]
    assert_close(one.logprobs.to_torch(), rows.gather(1, ids))
    assert ids.tolist() == again.tokens.to_torch().tolist()
    assert ids.tolist() != other.tokens.to_torch().tolist()


def test_greedy_alternatives_are_the_argmax(sampler: tinker.SamplingClient, plain: Any) -> None:
    got = ask(sampler, {"temperature": 0.0}, prompt_alt_tokens_k=1).prompt_alt_tokens

    assert got is not None
    best = distributions(plain, PROMPT)[:-1].argmax(-1)
    assert got.tokens.to_torch()[:, 0].tolist() == best.tolist()


def test_prompt_logprobs_and_top_k_are_at_temperature_one(
    sampler: tinker.SamplingClient, plain: Any
) -> None:
    response = ask(
        sampler, {"temperature": 0.3}, include_prompt_logprobs=True, topk_prompt_logprobs=3
    )

    rows = distributions(plain, PROMPT).log_softmax(-1)[:-1]
    own = rows.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs[0] is None
    assert_close(response.prompt_logprobs[1:], own)
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs[0] is None
    assert response.topk_prompt_logprobs_np is not None
    assert_close(response.topk_prompt_logprobs_np.logprobs[1:], rows.topk(3, -1).values)


def test_only_the_last_n_tokens_are_scored(sampler: tinker.SamplingClient) -> None:
    model_input = types.ModelInput.from_ints(PROMPT)
    whole = sampler.compute_logprobs(model_input).result()

    last = sampler.compute_logprobs(model_input, prompt_logprobs_last_n=5).result()

    assert last == [None] * (len(PROMPT) - 5) + whole[-5:]
    response = ask(
        sampler, include_prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=5
    )
    assert response.topk_prompt_logprobs is not None
    assert [row is None for row in response.topk_prompt_logprobs] == [True] * 35 + [False] * 5


def test_logprobs_of_a_text_that_fills_the_context(
    sampler: tinker.SamplingClient, up: Running
) -> None:
    (model,) = up.rest().get_server_capabilities().result().supported_models
    assert model.max_context_length is not None
    ids = tokens(model.max_context_length, 3)

    logprobs = sampler.compute_logprobs(types.ModelInput.from_ints(ids)).result()

    assert len(logprobs) == len(ids)
    assert all(each is not None for each in logprobs[1:])


def test_everything_at_once_is_what_each_is_alone(sampler: tinker.SamplingClient) -> None:
    targets = types.TensorData.from_torch(torch.full((len(PROMPT) - 1, 1), 9, dtype=torch.int64))
    options: dict[str, Any] = {
        "topk_sample_logprobs": 2,
        "prompt_alt_tokens_k": 2,
        "target_prompt_logprobs": targets,
    }
    drawing = {"max_tokens": 8, "temperature": 0.9}

    together = ask(sampler, drawing, num_samples=2, include_prompt_logprobs=True, **options)

    plain_one = ask(sampler, drawing, num_samples=2)
    assert [s.tokens for s in together.sequences] == [s.tokens for s in plain_one.sequences]
    for name, value in options.items():
        alone = ask(sampler, drawing, num_samples=2, **{name: value})
        for field in ("prompt_alt_tokens", "target_prompt_logprobs"):
            if getattr(alone, field) is not None:
                assert repr(getattr(alone, field)) == repr(getattr(together, field))


def test_sequence_ids_are_unique_within_the_session(sampler: tinker.SamplingClient) -> None:
    responses = [ask(sampler, num_samples=3) for _ in range(2)]

    found = [sequence.sequence_id for each in responses for sequence in each.sequences]
    assert len(set(found)) == 6


def test_whole_blocks_of_a_prompt_that_was_asked_before_are_cache_hits(
    service: tinker.ServiceClient,
) -> None:
    """Samples of one request share their prompt, which is no hit."""
    client = service.create_sampling_client(base_model=BASE_MODEL).result()
    prompt = types.ModelInput.from_ints([7, *range(100, 140)])
    params = types.SamplingParams(max_tokens=2, seed=7, stop=[])

    hits = [
        client.sample(prompt, num_samples=4, sampling_params=params)
        .result()
        .prompt_cache_hit_tokens
        for _ in range(2)
    ]

    assert hits == [0, 32]


def test_stability_information_may_be_asked_for(service: tinker.ServiceClient) -> None:
    client = service.create_sampling_client(
        base_model=BASE_MODEL, record_stability_info=True
    ).result()

    assert ask(client).sequences


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (types.ImageChunk(data=b"\x89PNG", format="png"), "image.*encoded_text"),
        (
            types.ImageAssetPointerChunk(format="png", location="asset://x", expected_tokens=3),
            "image_asset_pointer.*encoded_text",
        ),
        (types.EncodedTextChunk(tokens=[]), "Chunk 1 has empty tokens list"),
    ],
)
def test_a_chunk_that_cannot_be_sampled_from_is_refused(
    sampler: tinker.SamplingClient, chunk: Any, words: str
) -> None:
    prompt = types.ModelInput(chunks=[types.EncodedTextChunk(tokens=[5]), chunk])

    with pytest.raises(tinker.RequestFailedError, match=words):
        sampler.sample(
            prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=1)
        ).result()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"target_prompt_logprobs": types.TensorData(data=[1, 2], dtype="int64", shape=[2, 1])},
            "expected 39 rows",
        ),
        ({"prompt_logprobs_last_n": 40, "include_prompt_logprobs": True}, "1 to 39"),
        ({"topk_sample_logprobs": 1000}, "topk_sample_logprobs is 1000"),
        ({"prompt_alt_tokens_k": 1000}, "prompt_alt_tokens_k is 1000"),
    ],
)
def test_what_cannot_be_reported_is_refused_and_the_client_goes_on(
    sampler: tinker.SamplingClient, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(tinker.RequestFailedError, match=words):
        ask(sampler, **options)

    assert ask(sampler).sequences
