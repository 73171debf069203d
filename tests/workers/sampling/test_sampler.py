from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cyclora_core.errors import ServerError, UserError
from cyclora_core.partials import PartialToken
from cyclora_core.samples import SampleResult, StopReason
from cyclora_workers.adapter import AdapterWeights, ModuleAdapter
from workers.sampling.builders import (
    CONTEXT_LENGTH,
    EOS_TOKEN_ID,
    VOCAB_SIZE,
    TinyModel,
    adapter,
    bits,
    body,
    detokenize,
    plain_logprobs,
    random_tokens,
    run_until_idle,
    sample,
    sampler,
    tokens_of,
)

PROMPT = random_tokens(20, 1)


def test_the_samples_of_a_request_differ_and_each_is_reproducible(qwen3: TinyModel) -> None:
    request = body(PROMPT, num_samples=4, seed=5, max_tokens=10)

    first, second = (sample(qwen3.base_model, request) for _ in range(2))

    assert len({tuple(tokens_of(sequence)) for sequence in first.sequences}) == 4
    assert bits(first) == bits(second)


def test_a_sample_does_not_depend_on_how_many_siblings_it_has(qwen3: TinyModel) -> None:
    many = sample(qwen3.base_model, body(PROMPT, num_samples=5, seed=5, max_tokens=30))
    few = sample(qwen3.base_model, body(PROMPT, num_samples=2, seed=5, max_tokens=30))

    for expected, sequence in zip(many.sequences[:2], few.sequences, strict=True):
        assert tokens_of(expected) == tokens_of(sequence)
        assert expected.logprobs.tobytes() == sequence.logprobs.tobytes()


def test_another_seed_gives_other_tokens(qwen3: TinyModel) -> None:
    one, other = (
        sample(qwen3.base_model, body(PROMPT, seed=seed, max_tokens=10)) for seed in (5, -6)
    )

    assert tokens_of(one.sequences[0]) != tokens_of(other.sequences[0])


def test_first_tokens_follow_the_models_distribution(qwen3: TinyModel) -> None:
    """Chi-square over 2000 samples with a fixed seed; tokens too rare for it are pooled."""
    num_samples = 2000
    result = sample(qwen3.base_model, body(PROMPT, num_samples=num_samples, max_tokens=1))
    observed = np.bincount([int(s.tokens[0]) for s in result.sequences], minlength=VOCAB_SIZE)
    expected = plain_logprobs(qwen3.plain, PROMPT)[-1].exp().double().numpy() * num_samples

    common = expected >= 5
    pooled_observed = [*observed[common], observed[~common].sum()]
    pooled_expected = [*expected[common], expected[~common].sum()]
    chi_square = sum(
        (o - e) ** 2 / e for o, e in zip(pooled_observed, pooled_expected, strict=True)
    )

    degrees = len(pooled_expected) - 1
    assert degrees > 20
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def test_end_of_sequence_stops_and_stays_among_the_tokens(qwen3: TinyModel) -> None:
    request = body(PROMPT, num_samples=40, stop_on_eos=True, max_tokens=60, temperature=1.5)

    sequences = sample(qwen3.base_model, request).sequences

    stopped = [tokens_of(s) for s in sequences if s.stop_reason is StopReason.STOP]
    ran_on = [tokens_of(s) for s in sequences if s.stop_reason is StopReason.LENGTH]
    assert stopped
    assert ran_on
    assert all(t[-1] == EOS_TOKEN_ID and EOS_TOKEN_ID not in t[:-1] for t in stopped)
    assert all(len(t) == 60 and EOS_TOKEN_ID not in t for t in ran_on)


def test_without_any_stop_a_sample_runs_through_end_of_sequence_to_its_length(
    qwen3: TinyModel,
) -> None:
    request = body(PROMPT, num_samples=40, max_tokens=60, temperature=1.5)

    sequences = sample(qwen3.base_model, request).sequences

    assert {(60, StopReason.LENGTH)} == {(len(s.tokens), s.stop_reason) for s in sequences}
    assert any(EOS_TOKEN_ID in tokens_of(s)[:-1] for s in sequences)


def test_stopping_leaves_the_tokens_before_it_as_they_were(qwen3: TinyModel) -> None:
    unstopped = sample(qwen3.base_model, body(PROMPT, num_samples=8, max_tokens=40))
    request = body(PROMPT, num_samples=8, max_tokens=40, stop_token_ids=[10, 20, 30, 40, 50])

    stopped = sample(qwen3.base_model, request)

    assert any(s.stop_reason is StopReason.STOP for s in stopped.sequences)
    for expected, sequence in zip(unstopped.sequences, stopped.sequences, strict=True):
        assert tokens_of(expected)[: len(sequence.tokens)] == tokens_of(sequence)
        assert expected.logprobs[: len(sequence.logprobs)].tolist() == sequence.logprobs.tolist()


def test_a_stop_string_that_spans_tokens_stops_where_it_is_complete(qwen3: TinyModel) -> None:
    unstopped = sample(qwen3.base_model, body(PROMPT, max_tokens=40)).sequences[0]
    text = detokenize(tokens_of(unstopped))
    string = text[17:20]

    stopped = sample(qwen3.base_model, body(PROMPT, max_tokens=40, stop_strings=[string]))

    expected_length = text.index(string) + 3
    assert stopped.sequences[0].stop_reason == StopReason.STOP
    assert tokens_of(unstopped)[:expected_length] == tokens_of(stopped.sequences[0])


def test_max_tokens_none_samples_up_to_the_context_length(qwen3: TinyModel) -> None:
    prompt = random_tokens(CONTEXT_LENGTH - 12, 2)

    (sequence,) = sample(qwen3.base_model, body(prompt, max_tokens=None)).sequences

    assert (len(sequence.tokens), sequence.stop_reason) == (12, StopReason.LENGTH)


def test_a_prompt_that_fills_the_context_still_gets_its_logprobs(qwen3: TinyModel) -> None:
    prompt = random_tokens(CONTEXT_LENGTH, 3)

    result = sample(qwen3.base_model, body(prompt, max_tokens=1, prompt_logprobs=True))

    assert result.prompt_logprobs is not None
    assert np.isfinite(result.prompt_logprobs[1:]).all()


def test_max_tokens_zero_asks_about_the_prompt_alone(qwen3: TinyModel) -> None:
    request = body(PROMPT, max_tokens=0, num_samples=2, prompt_logprobs=True)

    result = sample(qwen3.base_model, request)

    assert [len(s.tokens) for s in result.sequences] == [0, 0]
    assert result.prompt_logprobs is not None
    assert len(PROMPT) == len(result.prompt_logprobs)


@pytest.mark.parametrize("num_tokens", [1, 2, 64, 65, 300])
def test_prompt_logprobs_equal_a_plain_forward(qwen3: TinyModel, num_tokens: int) -> None:
    """300 tokens take several chunks of prefill and of logits."""
    prompt = random_tokens(num_tokens, 4)
    request = body(prompt, prompt_logprobs=True, topk_prompt_logprobs=5, max_tokens=1)

    result = sample(qwen3.base_model, request, prefill_chunk_tokens=192)

    reference = plain_logprobs(qwen3.plain, prompt)[:-1]
    targets = torch.from_numpy(prompt[1:].astype(np.int64))[:, None]
    expected = reference.gather(1, targets)[:, 0].numpy()
    assert result.prompt_logprobs is not None
    assert np.isnan(result.prompt_logprobs[0])
    np.testing.assert_allclose(result.prompt_logprobs[1:], expected, atol=1e-5)

    assert result.topk_prompt_tokens is not None
    assert result.topk_prompt_logprobs is not None
    assert result.topk_prompt_tokens[0].tolist() == [0] * 5
    assert result.topk_prompt_logprobs[0].tolist() == [-99999.0] * 5
    top = reference.topk(5, -1)
    np.testing.assert_allclose(result.topk_prompt_logprobs[1:], top.values.numpy(), atol=1e-5)
    assert np.array_equal(top.indices.numpy(), result.topk_prompt_tokens[1:])


def test_prompt_logprobs_are_at_temperature_one(qwen3: TinyModel) -> None:
    cold, warm = (
        sample(qwen3.base_model, body(PROMPT, prompt_logprobs=True, temperature=temperature))
        for temperature in (0.1, 1.0)
    )

    assert cold.prompt_logprobs is not None
    assert warm.prompt_logprobs is not None
    assert warm.prompt_logprobs.tobytes() == cold.prompt_logprobs.tobytes()


def test_what_was_not_asked_about_the_prompt_is_not_returned(qwen3: TinyModel) -> None:
    result = sample(qwen3.base_model, body(PROMPT))

    assert result.prompt_logprobs is None
    assert result.topk_prompt_tokens is None
    assert result.topk_prompt_logprobs is None


def test_a_result_survives_the_payload(qwen3: TinyModel) -> None:
    request = body(PROMPT, num_samples=2, prompt_logprobs=True, topk_prompt_logprobs=2)
    result = sample(qwen3.base_model, request)

    copy = SampleResult.from_payload(result.to_payload())

    assert bits(result) == bits(copy)
    assert [np.int32] * 2 == [s.tokens.dtype for s in copy.sequences]
    assert [np.float32] * 2 == [s.logprobs.dtype for s in copy.sequences]


def test_memory_makes_requests_wait_in_order_and_all_finish(qwen3: TinyModel) -> None:
    """Each begins with 2 blocks of 16 tokens and may take a third; 5 blocks hold two at first."""
    requests = {f"r{i}": body(random_tokens(20, i), max_tokens=20, seed=i) for i in range(5)}
    crowded = sampler(qwen3.base_model, max_kv_tokens=80)
    for request_id, request in requests.items():
        crowded.admit(request_id, request, None)
    order: list[str] = []
    most_rows = 0

    while not crowded.is_idle:
        order += [finished.request_id for finished in crowded.step()]
        most_rows = max(most_rows, crowded.num_running_rows)

    assert list(requests) == order
    assert most_rows == 2
    assert crowded.free_kv_tokens == 80


def test_a_small_request_does_not_overtake_a_large_one_that_waits(qwen3: TinyModel) -> None:
    crowded = sampler(qwen3.base_model, max_kv_tokens=112)
    crowded.admit("running", body(PROMPT), None)
    crowded.admit("large", body(random_tokens(80, 3)), None)
    crowded.admit("small", body(random_tokens(5, 4), max_tokens=1), None)

    crowded.step()

    assert crowded.num_waiting == 2
    assert {"running", "large", "small"} == set(run_until_idle(crowded))


def test_a_sequence_that_can_never_fit_is_refused_with_its_sizes(qwen3: TinyModel) -> None:
    crowded = sampler(qwen3.base_model, max_kv_tokens=80)

    with pytest.raises(UserError, match=r"81 tokens \(20 of the prompt and up to 62 .* holds 80"):
        crowded.admit("large", body(PROMPT, max_tokens=62), None)

    assert crowded.is_idle


def test_more_samples_than_fit_together_run_one_after_another(qwen3: TinyModel) -> None:
    request = body(PROMPT, num_samples=12, max_tokens=30)

    crowded = sample(qwen3.base_model, request, max_kv_tokens=80)

    assert bits(sample(qwen3.base_model, request)) == bits(crowded)


def test_memory_for_less_than_a_block_is_refused(qwen3: TinyModel) -> None:
    with pytest.raises(ValueError, match="max_kv_tokens is 15; it must be at least 16"):
        sampler(qwen3.base_model, max_kv_tokens=15)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt has 0 tokens"),
        ([5] * (CONTEXT_LENGTH + 1), {}, f"from 1 to {CONTEXT_LENGTH}"),
        ([5, VOCAB_SIZE], {}, rf"token {VOCAB_SIZE} is not in \[0, {VOCAB_SIZE}\)"),
        ([5, -1], {}, "token -1"),
        ([5], {"num_samples": 0}, "num_samples is 0"),
        ([5], {"max_tokens": -1}, "max_tokens is -1"),
        ([5], {"temperature": -0.5}, "temperature is -0.5"),
        ([5], {"temperature": float("nan")}, "temperature is nan"),
        ([5], {"top_p": 1.5}, "top_p is 1.5"),
        ([5], {"topk_prompt_logprobs": VOCAB_SIZE + 1}, "topk_prompt_logprobs is 102"),
        ([5], {"stop_strings": [""]}, "stop string is empty"),
    ],
)
def test_what_would_break_the_shared_pass_is_refused(
    qwen3: TinyModel, prompt: Sequence[int], options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sampler(qwen3.base_model).admit("bad", body(prompt, **options), None)


def test_stop_strings_without_a_tokenizer_are_refused(qwen3: TinyModel) -> None:
    without = sampler(qwen3.base_model, detokenize=None)

    with pytest.raises(UserError, match="stop strings"):
        without.admit("bad", body(PROMPT, stop_strings=["x"]), None)


def diverged(weights: AdapterWeights) -> AdapterWeights:
    weights.flat_P.fill_(float("nan"))
    return weights


def misshapen(weights: AdapterWeights) -> AdapterWeights:
    """Weights whose matrices do not fit the base model: the pass itself raises."""
    modules = {
        name: ModuleAdapter(torch.zeros(4, 7), torch.zeros(9, 4), None, None)
        for name in weights.modules
    }
    return AdapterWeights(4, 8.0, weights.flat_P, modules)


def run_beside(
    model: TinyModel, request: Any, weights: AdapterWeights | None
) -> tuple[SampleResult | Exception, dict[str, bool]]:
    """The result of a request, and whether each of its neighbours got what it gets alone."""
    neighbours = {f"n{i}": body(random_tokens(30 * i + 5, i), seed=i) for i in range(4)}
    shared = sampler(model.base_model)
    for request_id in ("n0", "n1"):
        shared.admit(request_id, neighbours[request_id], None)
    shared.step()
    shared.admit("failing", request, weights)
    for request_id in ("n2", "n3"):
        shared.admit(request_id, neighbours[request_id], None)
    results = run_until_idle(shared)
    unharmed = {
        request_id: bits(sample(model.base_model, neighbour)) == bits(results[request_id])
        for request_id, neighbour in neighbours.items()
    }
    assert shared.free_kv_tokens == 100_000
    return results["failing"], unharmed


ALL_UNHARMED = {f"n{i}": True for i in range(4)}


def test_an_adapter_that_diverged_fails_its_own_request_only(qwen3: TinyModel) -> None:
    weights = diverged(adapter(qwen3.base_model, 1))

    result, unharmed = run_beside(qwen3, body(PROMPT), weights)

    assert isinstance(result, UserError)
    assert "diverged" in str(result)
    assert unharmed == ALL_UNHARMED


def test_a_pass_that_raises_fails_the_guilty_request_only(qwen3: TinyModel) -> None:
    weights = misshapen(adapter(qwen3.base_model, 1))

    result, unharmed = run_beside(qwen3, body(PROMPT), weights)

    assert isinstance(result, RuntimeError)
    assert unharmed == ALL_UNHARMED


def test_a_tokenizer_that_raises_fails_the_request_that_asked_for_it(qwen3: TinyModel) -> None:
    def broken(tokens: Sequence[int]) -> str:
        raise KeyError(tokens[-1])

    shared = sampler(qwen3.base_model, detokenize=broken)
    shared.admit("broken", body(PROMPT, stop_strings=["x"], num_samples=3), None)
    shared.admit("sound", body(PROMPT), None)

    results = run_until_idle(shared)

    assert isinstance(results["broken"], KeyError)
    assert bits(sample(qwen3.base_model, body(PROMPT))) == bits(results["sound"])


def test_a_base_model_without_finite_logits_is_not_the_tenants_fault(
    qwen3: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        return torch.full((1, VOCAB_SIZE), float("nan"))

    monkeypatch.setattr(qwen3.base_model, "logits", broken)
    alone = sampler(qwen3.base_model)
    alone.admit("r", body(PROMPT), None)

    assert isinstance(run_until_idle(alone)["r"], ServerError)


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_cancelling_frees_the_memory_and_leaves_the_others(
    qwen3: TinyModel, num_steps: int
) -> None:
    shared = sampler(qwen3.base_model, max_kv_tokens=80)
    requests = {f"r{i}": body(PROMPT, seed=i) for i in range(4)}
    for request_id, request in requests.items():
        shared.admit(request_id, request, None)
    for _ in range(num_steps):
        shared.step()

    shared.cancel("r1")
    shared.cancel("r3")
    shared.cancel("unknown")

    results = run_until_idle(shared)
    assert {"r0", "r2"} == set(results)
    assert shared.free_kv_tokens == 80
    for request_id, result in results.items():
        assert bits(sample(qwen3.base_model, requests[request_id])) == bits(result)


def test_cancelling_the_last_request_lets_go_of_its_adapter(qwen3: TinyModel) -> None:
    shared, weights = sampler(qwen3.base_model), adapter(qwen3.base_model, 1)
    shared.admit("r", body(PROMPT), weights)
    shared.step()
    alive = weakref.ref(weights)
    del weights

    shared.cancel("r")

    gc.collect()
    assert alive() is None


def test_a_long_prompt_does_not_keep_rows_from_decoding(qwen3: TinyModel) -> None:
    shared = sampler(qwen3.base_model, prefill_chunk_tokens=64)
    shared.admit("short", body(PROMPT, max_tokens=5), None)
    shared.admit("long", body(random_tokens(380, 6), max_tokens=1), None)

    order = [[finished.request_id for finished in shared.step()] for _ in range(7)]

    assert order == [[], [], [], [], ["short"], [], ["long"]]


def test_an_idle_sampler_steps_without_effect(qwen3: TinyModel) -> None:
    idle = sampler(qwen3.base_model)

    assert idle.step() == []
    assert idle.is_idle


def test_a_prefill_chunk_below_one_block_is_refused(qwen3: TinyModel) -> None:
    with pytest.raises(ValueError, match="at least 64"):
        sampler(qwen3.base_model, prefill_chunk_tokens=63)


def test_partial_tokens_stand_in_an_order_that_rows_which_end_early_do_not_change(
    qwen3: TinyModel,
) -> None:
    free = sample(qwen3.base_model, body(PROMPT, num_samples=4, seed=5, max_tokens=10))
    stop = tokens_of(free.sequences[1])[2]
    request = dataclasses.replace(
        body(PROMPT, num_samples=4, seed=5, max_tokens=10, stop_token_ids=[stop]), is_streamed=True
    )
    watched = sampler(qwen3.base_model)
    watched.admit("watched", request, None)
    shown: list[PartialToken] = []
    results: list[SampleResult | Exception] = []
    while not watched.is_idle:
        results += [each.result for each in watched.step()]
        for partial in watched.take_partials():
            assert partial.first == len(shown)
            shown += partial.tokens

    (result,) = results
    assert isinstance(result, SampleResult)
    sequences = [tokens_of(sequence) for sequence in result.sequences]
    assert len({len(sequence) for sequence in sequences}) > 1
    expected = sorted(
        (at, row) for row, tokens in enumerate(sequences) for at in range(len(tokens))
    )
    seen = [(each.sample_index, each.token) for each in shown]
    assert seen == [(row, sequences[row][at]) for at, row in expected][: len(seen)]
    assert len(seen) >= len(expected) - 4


def test_a_request_that_nobody_streams_shows_nothing(qwen3: TinyModel) -> None:
    alone = sampler(qwen3.base_model)
    alone.admit("alone", body(PROMPT), None)
    alone.step()

    assert not alone.has_streams
    assert alone.take_partials() == []
