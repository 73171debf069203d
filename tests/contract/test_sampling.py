"""Sampling through the official SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tinker
from tinker import types

from contract.builders import datum, tokens, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]


@pytest.fixture
def sampler(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=BASE_MODEL).result()


def prompt(num_tokens: int = 8, seed: int = 1) -> types.ModelInput:
    return types.ModelInput.from_ints(tokens(num_tokens, seed))


def params(**options: Any) -> types.SamplingParams:
    settings: dict[str, Any] = {"max_tokens": 8, "seed": 7, "stop": [], **options}
    return types.SamplingParams(**settings)


def drawn(response: types.SampleResponse) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in response.sequences]


def test_the_same_seed_gives_the_same_tokens(sampler: tinker.SamplingClient) -> None:
    first, second = (
        sampler.sample(prompt(), num_samples=4, sampling_params=params()).result() for _ in range(2)
    )

    assert drawn(first) == drawn(second)
    assert len({tuple(each) for each in drawn(first)}) > 1


def test_a_sample_is_the_same_beside_many_others(sampler: tinker.SamplingClient) -> None:
    alone = sampler.sample(prompt(), num_samples=2, sampling_params=params(max_tokens=24)).result()

    futures = [
        sampler.sample(prompt(3 + i, i), num_samples=1 + i % 3, sampling_params=params(seed=i))
        for i in range(12)
    ]
    beside = sampler.sample(prompt(), num_samples=2, sampling_params=params(max_tokens=24)).result()
    for future in futures:
        future.result()

    assert drawn(beside) == drawn(alone)
    assert [s.logprobs for s in beside.sequences] == [s.logprobs for s in alone.sequences]


def test_an_empty_stop_list_stops_nowhere(sampler: tinker.SamplingClient) -> None:
    response = sampler.sample(
        prompt(), num_samples=3, sampling_params=params(max_tokens=40)
    ).result()

    assert [len(each) for each in drawn(response)] == [40, 40, 40]
    assert {sequence.stop_reason for sequence in response.sequences} == {"length"}


def test_a_stop_token_ends_the_sample_and_is_part_of_it(sampler: tinker.SamplingClient) -> None:
    free = sampler.sample(prompt(), num_samples=1, sampling_params=params()).result()
    stop = drawn(free)[0][3]

    response = sampler.sample(prompt(), num_samples=1, sampling_params=params(stop=[stop])).result()

    expected = drawn(free)[0]
    assert drawn(response)[0] == expected[: expected.index(stop) + 1]
    assert response.sequences[0].stop_reason == "stop"


def test_a_stop_string_ends_the_sample(sampler: tinker.SamplingClient, new_model: NewModel) -> None:
    tokenizer: Any = new_model().get_tokenizer()
    greedy = params(temperature=0.0, max_tokens=30)
    question = types.ModelInput.from_ints(
        tokenizer.encode("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n")
    )
    text = tokenizer.decode(
        drawn(sampler.sample(question, num_samples=1, sampling_params=greedy).result())[0]
    )
    stop = text[2:5]

    response = sampler.sample(
        question,
        num_samples=1,
        sampling_params=params(temperature=0.0, max_tokens=30, stop=stop),
    ).result()

    got = tokenizer.decode(drawn(response)[0])
    assert stop in got
    assert text.startswith(got)
    assert response.sequences[0].stop_reason == "stop"


def test_logprobs_of_a_fresh_sample_equal_forward(new_model: NewModel) -> None:
    model = new_model()
    train(model, [datum()], 2)
    sampler = model.save_weights_and_get_sampling_client().result()
    start = tokens(6, 3)
    sequence = (
        sampler.sample(
            types.ModelInput.from_ints(start), num_samples=1, sampling_params=params(max_tokens=16)
        )
        .result()
        .sequences[0]
    )
    ids = start + list(sequence.tokens)
    data = types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=ids[1:], dtype="int64", shape=[len(ids) - 1]),
            "weights": types.TensorData(
                data=[1.0] * (len(ids) - 1), dtype="float32", shape=[len(ids) - 1]
            ),
        },
    )

    output = model.forward([data], "cross_entropy").result()

    expected = output.loss_fn_outputs[0]["logprobs"].data[len(start) - 1 :]
    assert sequence.logprobs is not None
    np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-5)
    prompt_logprobs = sampler.compute_logprobs(types.ModelInput.from_ints(ids)).result()
    assert prompt_logprobs[0] is None
    np.testing.assert_allclose(
        np.array(prompt_logprobs[1:], dtype=float),
        output.loss_fn_outputs[0]["logprobs"].data,
        atol=1e-5,
    )


def test_sampled_logprobs_belong_to_the_temperature_scaled_distribution(
    sampler: tinker.SamplingClient,
) -> None:
    """log p_T(a) - log p_T(b) = (log p_1(a) - log p_1(b)) / T for any two tokens."""
    seen: dict[float, dict[int, float]] = {1.0: {}, 4.0: {}}
    for temperature, logprob_of in seen.items():
        drawing = params(max_tokens=1, temperature=temperature)
        response = sampler.sample(prompt(), num_samples=256, sampling_params=drawing).result()
        for sequence in response.sequences:
            assert sequence.logprobs is not None
            logprob_of[sequence.tokens[0]] = sequence.logprobs[0]
    both = sorted(set(seen[1.0]) & set(seen[4.0]))

    assert len(both) >= 2
    for a, b in pairwise(both):
        at_1 = seen[1.0][a] - seen[1.0][b]
        assert seen[4.0][a] - seen[4.0][b] == pytest.approx(at_1 / 4, abs=1e-4)


def test_prompt_logprobs_and_their_top_k_come_back(sampler: tinker.SamplingClient) -> None:
    response = sampler.sample(
        prompt(6),
        num_samples=1,
        sampling_params=params(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
    ).result()

    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs[0] is None
    assert all(value is not None and value < 0 for value in response.prompt_logprobs[1:])
    assert response.topk_prompt_logprobs is not None
    rows = response.topk_prompt_logprobs[1:]
    assert all(row is not None and len(row) == 3 for row in rows)
    assert all(row is not None and row[0][1] >= row[1][1] >= row[2][1] for row in rows)


def test_top_k_one_is_greedy(sampler: tinker.SamplingClient) -> None:
    greedy = sampler.sample(prompt(), num_samples=1, sampling_params=params(temperature=0.0))
    top_one = sampler.sample(prompt(), num_samples=1, sampling_params=params(top_k=1))

    assert drawn(greedy.result()) == drawn(top_one.result())


def test_a_new_sampling_batch_size_causes_no_pause(sampler: tinker.SamplingClient) -> None:
    def seconds(num_samples: int) -> float:
        started = time.perf_counter()
        sampler.sample(
            prompt(seed=num_samples), num_samples=num_samples, sampling_params=params()
        ).result()
        return time.perf_counter() - started

    seconds(1)
    again = sorted(seconds(1) for _ in range(5))[2]
    fresh = [seconds(num_samples) for num_samples in (2, 3, 5, 7, 11, 13)]

    # A compiler would take seconds; 13 rows take about as long as one.
    assert max(fresh) < 10 * again + 0.5


def test_a_trained_adapter_samples_what_it_learned(new_model: NewModel) -> None:
    model = new_model(rank=16)
    losses = train(model, [datum(10, seed=5)], 40, learning_rate=5e-3)
    assert losses[-1] < 0.5
    sampler = model.save_weights_and_get_sampling_client().result()
    ids = tokens(11, 5)

    response = sampler.sample(
        types.ModelInput.from_ints(ids[:3]),
        num_samples=1,
        sampling_params=params(max_tokens=8, temperature=0.0),
    ).result()

    assert drawn(response)[0] == ids[3:]


def test_a_named_sampler_checkpoint_is_sampled_by_path(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model()
    train(model, [datum()], 2)
    path = model.save_weights_for_sampler("by-path").result().path
    direct = model.create_sampling_client(path).result()
    rest = service.create_sampling_client(model_path=path).result()

    answers = [
        drawn(client.sample(prompt(), num_samples=2, sampling_params=params()).result())
        for client in (direct, rest)
    ]

    assert answers[0] == answers[1]
    assert rest.get_base_model() == BASE_MODEL


async def test_a_hundred_concurrent_samples_all_come_back(up: Running) -> None:
    client = await up.service("crowd").create_sampling_client(base_model=BASE_MODEL)

    responses = await asyncio.gather(
        *(
            client.sample(prompt(seed=i), num_samples=1, sampling_params=params())
            for i in range(100)
        )
    )

    assert [len(drawn(response)[0]) for response in responses] == [8] * 100


def test_sampling_goes_on_while_another_tenant_trains(up: Running, new_model: NewModel) -> None:
    model = new_model("trainer")
    data = [datum(200, seed=i) for i in range(16)]
    futures = [model.forward_backward(data, "cross_entropy") for _ in range(4)]
    sampler = up.service("sampler").create_sampling_client(base_model=BASE_MODEL).result()

    response = sampler.sample(prompt(), num_samples=2, sampling_params=params()).result()

    assert len(drawn(response)) == 2
    for future in futures:
        future.result()
