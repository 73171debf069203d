"""A tenant's numbers do not depend on who shares the batch with it: bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from cyclora_core.samples import Cells, PromptTargets, SampleBody, SampleResult
from cyclora_workers.adapter import AdapterWeights
from workers.sampling.builders import (
    TinyModel,
    adapter,
    bits,
    body,
    random_tokens,
    run_until_idle,
    sample,
    sampler,
)

Requests = Mapping[str, tuple[SampleBody, AdapterWeights | None]]


def targets(num_prompt_tokens: int) -> PromptTargets:
    tokens = np.arange(-1, num_prompt_tokens - 2) % 50
    return PromptTargets(Cells(num_prompt_tokens - 1, 1), tokens)


def requests(model: TinyModel) -> Requests:
    """Prompts of 1 to 310 tokens, four adapters of mixed ranks, and every way to draw."""
    weights = [adapter(model.base_model, i, rank=rank) for i, rank in enumerate((1, 4, 9))]
    adapters = [*weights, None]
    lengths = (1, 33, 130, 7, 310, 64, 65, 20, 2, 90, 200, 5)
    return {
        f"r{i}": (
            body(
                random_tokens(length, i),
                num_samples=(1, 3, 1, 2)[i % 4],
                max_tokens=(4, 25, 40, 12, 9)[i % 5],
                seed=i,
                temperature=(1.0, 0.0, 0.7)[i % 3],
                top_k=(0, 5, 0, 0, 9)[i % 5],
                top_p=(1.0, 1.0, 0.8)[i % 3],
                prompt_logprobs=i % 3 == 0,
                topk_prompt_logprobs=i % 4,
                topk_sample_logprobs=(0, 2, 5)[i % 3],
                prompt_alt_tokens_k=i % 2,
                prompt_logprobs_last_n=1 if i % 6 == 3 else None,
                targets=targets(length) if i % 4 == 2 else None,
                stop_token_ids=[8, 15] if i % 2 else [],
            ),
            adapters[i % 4],
        )
        for i, length in enumerate(lengths)
    }


def run_joining(
    model: TinyModel, requests: Requests, **options: int
) -> dict[str, SampleResult | Exception]:
    """Admit one after the other, with zero to three steps in between."""
    shared = sampler(model.base_model, **options)
    results: dict[str, SampleResult | Exception] = {}
    for index, (request_id, (request, weights)) in enumerate(requests.items()):
        shared.admit(request_id, request, weights)
        for _ in range(index % 4):
            results |= {f.request_id: f.result for f in shared.step()}
    return results | run_until_idle(shared)


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2"])
def test_requests_that_join_and_leave_have_the_bits_they_have_alone(
    architecture: str, request: pytest.FixtureRequest
) -> None:
    model: TinyModel = request.getfixturevalue(architecture)
    all_requests = requests(model)
    alone = {r: bits(sample(model.base_model, *each)) for r, each in all_requests.items()}

    together = run_joining(model, all_requests)

    assert alone == {request_id: bits(together[request_id]) for request_id in all_requests}


def test_threads_do_not_make_bits_depend_on_the_batch(qwen2: TinyModel) -> None:
    """With three query heads per key-value head, where small products would."""
    torch.set_num_threads(2)
    some = {r: each for r, each in requests(qwen2).items() if r in ("r1", "r3", "r7", "r11")}
    alone = {r: bits(sample(qwen2.base_model, *each)) for r, each in some.items()}

    together = run_joining(qwen2, some)

    assert alone == {request_id: bits(together[request_id]) for request_id in some}


def test_arriving_in_another_order_changes_nothing(qwen3: TinyModel) -> None:
    all_requests = requests(qwen3)
    forward = run_joining(qwen3, all_requests)

    backward = run_joining(qwen3, dict(reversed(list(all_requests.items()))))

    assert {r: bits(forward[r]) for r in all_requests} == {
        r: bits(backward[r]) for r in all_requests
    }


@pytest.mark.parametrize("prefill_chunk_tokens", [64, 100, 512])
def test_prefill_in_chunks_has_the_bits_of_the_whole_prompt(
    qwen3: TinyModel, prefill_chunk_tokens: int
) -> None:
    request = body(
        random_tokens(333, 8),
        num_samples=2,
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        prompt_alt_tokens_k=2,
        targets=targets(333),
    )
    whole = sample(qwen3.base_model, request, prefill_chunk_tokens=4096)

    chunked = sample(qwen3.base_model, request, prefill_chunk_tokens=prefill_chunk_tokens)

    assert bits(whole) == bits(chunked)


def test_little_memory_changes_when_but_not_what(qwen3: TinyModel) -> None:
    all_requests = requests(qwen3)
    plenty = run_joining(qwen3, all_requests)

    scarce = run_joining(qwen3, all_requests, max_kv_tokens=400)

    assert {r: bits(plenty[r]) for r in all_requests} == {r: bits(scarce[r]) for r in all_requests}


def test_a_copy_of_a_request_gets_the_same_sample(qwen3: TinyModel) -> None:
    """As when a worker is lost and another one takes the request over."""
    request = body(random_tokens(40, 9), num_samples=2, seed=77, max_tokens=20)

    together = run_joining(qwen3, {"a": (request, None), "b": (request, None)})

    assert bits(together["a"]) == bits(together["b"])
