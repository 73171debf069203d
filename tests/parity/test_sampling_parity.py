"""The sampler against plain transformers, PEFT and our own training forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cyclora_core.operations import Datum, LoraConfig, PassBody
from cyclora_core.payload import Array
from cyclora_core.samples import SampledSequence
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.pass_blocks import PassItem
from cyclora_workers.passes import PackedPasses
from parity.peft_reference import PeftReference
from parity.tolerances import FORWARD
from workers.sampling.builders import (
    ARCHITECTURES,
    TinyModel,
    body,
    load,
    load_plain,
    plain_greedy,
    plain_logprobs,
    random_tokens,
    run_until_idle,
    sample,
    sampler,
    succeeded,
    threads,
    tokens_of,
)

MAX_DIFFERENCE = 1e-5
"""Of logprobs in fp32, where one and the same model is computed in two ways."""

LENGTHS = (1, 31, 150)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return load(request.param, tmp_path_factory.mktemp(request.param))


def trained(base_model: BaseModel, seed: int, rank: int, **flags: bool) -> AdapterState:
    """An adapter as training might leave it: B is not zero."""
    state = AdapterState.create(base_model, LoraConfig(rank, seed, **flags))
    generator = torch.Generator().manual_seed(seed)
    for _, lora_B in state.layout.views(state.master_P).values():
        lora_B.copy_(torch.randn(lora_B.shape, generator=generator) * 0.05)
    state.refresh_weights()
    return state


def logprobs_of_sampled(plain: Any, prompt: Array, sequence: SampledSequence) -> Array:
    """Of the sampled tokens, from one full pass over prompt and sample."""
    everything = np.concatenate([prompt, sequence.tokens]).astype(np.int64)
    after_each = plain_logprobs(plain, everything)[len(prompt) - 1 : -1]
    targets = torch.from_numpy(everything[len(prompt) :, None])
    return after_each.gather(1, targets)[:, 0].numpy()


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_greedy_tokens_equal_plain_transformers(model: TinyModel, num_tokens: int) -> None:
    prompt = random_tokens(num_tokens, 5)

    result = sample(model.base_model, body(prompt, temperature=0.0, max_tokens=30, num_samples=2))

    expected = plain_greedy(model.plain, prompt, 30)
    assert [expected] * 2 == [tokens_of(sequence) for sequence in result.sequences]


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_logprobs_of_a_sample_equal_a_full_forward(
    model: TinyModel, num_tokens: int, num_samples: int
) -> None:
    prompt = random_tokens(num_tokens, 6)

    result = sample(model.base_model, body(prompt, max_tokens=45, num_samples=num_samples))

    for sequence in result.sequences:
        expected = logprobs_of_sampled(model.plain, prompt, sequence)
        np.testing.assert_allclose(sequence.logprobs, expected, rtol=0, atol=MAX_DIFFERENCE)


def test_logprobs_of_a_sample_equal_the_training_forward(model: TinyModel) -> None:
    """The promise to tenants: importance ratios of a fresh sample are 1."""
    base_model = model.base_model
    state = trained(base_model, 1, rank=8)
    prompt = random_tokens(40, 7)
    request = body(prompt, max_tokens=45, num_samples=3, prompt_logprobs=True)

    result = sample(base_model, request, state.snapshot_weights())

    data: list[Datum] = []
    for sequence in result.sequences:
        everything = np.concatenate([prompt, sequence.tokens]).astype(np.int32)
        inputs = {
            "target_tokens": everything[1:].astype(np.int64),
            "weights": np.ones(len(everything) - 1, np.float32),
        }
        data.append(Datum(everything[:-1], inputs))
    forward = PackedPasses(
        base_model,
        [PassItem("forward", state, PassBody("cross_entropy", {}, data), False)],
        max_tokens_per_microbatch=4096,
    )
    for _ in forward:
        pass
    assert result.prompt_logprobs is not None
    trained_logprobs = forward.results()["forward"].logprobs
    for sequence, expected in zip(result.sequences, trained_logprobs, strict=True):
        ours = np.concatenate([result.prompt_logprobs[1:], sequence.logprobs])
        np.testing.assert_allclose(ours, expected, rtol=0, atol=MAX_DIFFERENCE)


@pytest.mark.parametrize("temperature", [0.4, 1.8])
def test_logprobs_are_of_the_temperature_scaled_distribution(
    model: TinyModel, temperature: float
) -> None:
    prompt = random_tokens(25, 8)

    (sequence,) = sample(
        model.base_model, body(prompt, max_tokens=10, temperature=temperature)
    ).sequences

    everything = np.concatenate([prompt, sequence.tokens])
    after_each = plain_logprobs(model.plain, everything)[len(prompt) - 1 : -1]
    scaled = torch.log_softmax(after_each / temperature, -1)
    targets = torch.from_numpy(sequence.tokens.astype(np.int64))[:, None]
    np.testing.assert_allclose(
        sequence.logprobs, scaled.gather(1, targets)[:, 0].numpy(), rtol=0, atol=3 * MAX_DIFFERENCE
    )


def test_adapters_of_one_batch_each_equal_peft_alone(tmp_path: Any) -> None:
    """Mixed ranks and target modules, the unembedding among them, beside the bare base model."""
    model = load("llama", tmp_path)
    states = [
        trained(model.base_model, 2, rank=1),
        trained(model.base_model, 3, rank=16, train_unembed=False),
        trained(model.base_model, 4, rank=5, train_mlp=False),
    ]
    prompts = [random_tokens(length, length) for length in (12, 70, 3)]
    shared = sampler(model.base_model)
    for index, (state, prompt) in enumerate(zip(states, prompts, strict=True)):
        weights = state.snapshot_weights()
        shared.admit(f"drawn {index}", body(prompt, max_tokens=20, num_samples=2), weights)
        shared.admit(f"greedy {index}", body(prompt, max_tokens=20, temperature=0.0), weights)
    shared.admit("bare", body(prompts[0], max_tokens=20, temperature=0.0), None)

    results = {r: succeeded(result) for r, result in run_until_idle(shared).items()}

    bare = tokens_of(results["bare"].sequences[0])
    assert plain_greedy(model.plain, prompts[0], 20) == bare
    for index, (state, prompt) in enumerate(zip(states, prompts, strict=True)):
        adapted = PeftReference(load_plain(tmp_path), state).model
        greedy = tokens_of(results[f"greedy {index}"].sequences[0])
        assert plain_greedy(adapted, prompt, 20) == greedy
        for sequence in results[f"drawn {index}"].sequences:
            expected = logprobs_of_sampled(adapted, prompt, sequence)
            np.testing.assert_allclose(sequence.logprobs, expected, rtol=0, atol=MAX_DIFFERENCE)
    assert bare != tokens_of(results["greedy 0"].sequences[0])


def test_sampling_in_half_precision_stays_close_to_a_full_forward(tmp_path: Any) -> None:
    load("qwen3", tmp_path)
    base_model = BaseModel.load(
        "tests/half", tmp_path, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    prompt = random_tokens(90, 9)
    half = FORWARD[torch.bfloat16]

    result = sample(base_model, body(prompt, max_tokens=20, num_samples=2))

    for sequence in result.sequences:
        expected = logprobs_of_sampled(load_plain(tmp_path), prompt, sequence)
        np.testing.assert_allclose(sequence.logprobs, expected, rtol=0, atol=half.atol)
