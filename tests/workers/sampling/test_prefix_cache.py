"""What an earlier request computed is found again: the same bits, and only by who may know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cyclora_core.samples import SampleBody, SampleResult
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.sampling.sampler import Sampler
from workers.sampling.builders import (
    TinyModel,
    adapter,
    bits,
    body,
    random_tokens,
    run_until_idle,
    sample,
    sampler,
    succeeded,
    tokens_of,
)

PROMPT = random_tokens(100, 1)


def ask(
    shared: Sampler,
    request: SampleBody,
    weights: AdapterWeights | None = None,
    tenant_id: str = "a",
) -> SampleResult:
    shared.admit("r", request, weights, tenant_id)
    return succeeded(run_until_idle(shared)["r"])


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2"])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_hit_has_the_bits_of_a_miss(
    architecture: str, num_threads: int, request: pytest.FixtureRequest
) -> None:
    torch.set_num_threads(num_threads)
    model: TinyModel = request.getfixturevalue(architecture)
    weights = adapter(model.base_model, 1)
    shared = sampler(model.base_model)
    ask(shared, body(PROMPT, max_tokens=1), weights)
    wanted = body(np.concatenate((PROMPT, random_tokens(30, 2))), num_samples=3, max_tokens=20)

    hit = ask(shared, wanted, weights)

    assert hit.prompt_cache_hit_tokens == 96
    assert bits(sample(model.base_model, wanted, weights)) == bits(hit)


def test_the_next_turn_of_a_conversation_finds_what_was_sampled(qwen3: TinyModel) -> None:
    """Keys and values of sampled tokens are as good as those of a prompt, to the bit."""
    shared = sampler(qwen3.base_model)
    turn = ask(shared, body(PROMPT, max_tokens=60))
    answer = np.asarray(tokens_of(turn.sequences[0]), np.int32)
    following = body(np.concatenate((PROMPT, answer, random_tokens(9, 3))), max_tokens=30)

    hit = ask(shared, following)

    assert hit.prompt_cache_hit_tokens == (100 + 59) // 16 * 16
    assert bits(sample(qwen3.base_model, following)) == bits(hit)


def test_the_last_token_of_a_known_prompt_is_computed_to_draw_from_it(qwen3: TinyModel) -> None:
    request = body(random_tokens(64, 4))
    shared = sampler(qwen3.base_model)

    hits = [ask(shared, request).prompt_cache_hit_tokens for _ in range(2)]

    assert hits == [0, 48]


@pytest.mark.parametrize(
    ("report", "num_found"),
    [
        ({"prompt_logprobs": True}, 0),
        ({"prompt_alt_tokens_k": 2}, 0),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 30}, 64),
        ({"topk_prompt_logprobs": 2, "prompt_logprobs_last_n": 1}, 96),
    ],
)
def test_what_a_report_is_about_is_computed_again(
    qwen3: TinyModel, report: Any, num_found: int
) -> None:
    shared = sampler(qwen3.base_model)
    ask(shared, body(PROMPT))

    hit = ask(shared, body(PROMPT, **report))

    assert hit.prompt_cache_hit_tokens == num_found
    assert bits(sample(qwen3.base_model, body(PROMPT, **report))) == bits(hit)


def test_other_weights_find_nothing(qwen3: TinyModel) -> None:
    """Equal weights in another object neither: nobody compares what may change places."""
    shared = sampler(qwen3.base_model)
    ask(shared, body(PROMPT), adapter(qwen3.base_model, 1))

    for weights in (None, adapter(qwen3.base_model, 2), adapter(qwen3.base_model, 1)):
        assert ask(shared, body(PROMPT), weights).prompt_cache_hit_tokens == 0


def test_other_tenants_find_nothing(qwen3: TinyModel) -> None:
    shared = sampler(qwen3.base_model)
    ask(shared, body(PROMPT), tenant_id="a")

    hits = [ask(shared, body(PROMPT), tenant_id=t).prompt_cache_hit_tokens for t in ("b", "", "a")]

    assert hits == [0, 0, 96]


def test_equal_prompts_that_come_together_are_computed_once(qwen3: TinyModel) -> None:
    shared = sampler(qwen3.base_model)
    requests = {f"r{i}": body(PROMPT, seed=i) for i in range(5)}
    for request_id, request in requests.items():
        shared.admit(request_id, request, None)

    results = run_until_idle(shared)

    hits = [succeeded(results[each]).prompt_cache_hit_tokens for each in requests]
    assert hits == [0, 96, 96, 96, 96]
    for request_id, request in requests.items():
        assert bits(sample(qwen3.base_model, request)) == bits(results[request_id])


def test_one_that_waits_for_a_prefix_goes_on_when_it_will_not_come(qwen3: TinyModel) -> None:
    shared = sampler(qwen3.base_model, prefill_chunk_tokens=64)
    shared.admit("cancelled", body(random_tokens(300, 5)), None)
    shared.admit("waiting", body(random_tokens(300, 5)), None)
    shared.step()

    shared.cancel("cancelled")

    result = run_until_idle(shared)["waiting"]
    assert succeeded(result).prompt_cache_hit_tokens == 64
    assert bits(sample(qwen3.base_model, body(random_tokens(300, 5)))) == bits(result)


def test_a_prefix_makes_way_for_those_who_need_its_memory(qwen3: TinyModel) -> None:
    shared = sampler(qwen3.base_model, max_kv_tokens=128)
    ask(shared, body(PROMPT))
    assert shared.free_kv_tokens == 128

    ask(shared, body(random_tokens(110, 6)))

    assert ask(shared, body(PROMPT)).prompt_cache_hit_tokens == 0


def test_memory_of_a_diverged_sample_is_safe_for_the_next_one(qwen3: TinyModel) -> None:
    """What it left is NaN, and masked keys enter products too."""
    weights = adapter(qwen3.base_model, 1)
    weights.flat_P.fill_(float("nan"))
    shared = sampler(qwen3.base_model, max_kv_tokens=128)
    shared.admit("diverged", body(PROMPT), weights)
    assert isinstance(run_until_idle(shared)["diverged"], Exception)

    result = ask(shared, body(PROMPT))

    assert bits(sample(qwen3.base_model, body(PROMPT))) == bits(result)
