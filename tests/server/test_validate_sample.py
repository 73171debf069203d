from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from tinker import types

from cyclora_core.errors import UserError
from cyclora_core.samples import Cells, PromptTargets, SamplingParams
from cyclora_server import validate_sample
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import parse
from server.doubles.builders import BASE, SAMPLER


def sample_body(**changes: Any) -> bodies.Sample:
    value = {"sampling_session_id": SAMPLER, "seq_id": 0, "prompt": {"chunks": []}}
    return parse(bodies.Sample, value | changes)


def params(**sampling: Any) -> SamplingParams:
    return validate_sample.sampling_params(sample_body(sampling_params=sampling), BASE, seed=7)


def check_sample(
    num_prompt_tokens: int = 2, targets: PromptTargets | None = None, **changes: Any
) -> None:
    prompt = np.ones(num_prompt_tokens, np.int32)
    validate_sample.check_sample(sample_body(**changes), prompt, targets, BASE)


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -2}, "top_k is -2"),
        ({"seed": 2**64}, "expected a 64-bit number"),
        ({"stop": 5}, "stop is '5'"),
        ({"stop": [100]}, "stop has token id 100; expected 0..99"),
        ({"stop": [-1]}, "stop has token id -1"),
        ({"stop": [1, "a"]}, "expected only token ids, or only strings"),
        ({"stop": [True]}, "expected only token ids, or only strings"),
        ({"stop": ""}, "strings of 1 to 1024 characters"),
        ({"stop": ["x" * 1025]}, "strings of 1 to 1024 characters"),
        ({"stop": ["x"] * 65}, "stop has 65 entries"),
    ],
)
def test_a_sampling_parameter_outside_its_range_is_refused(
    sent: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        params(**sent)


def test_eos_stops_unless_the_client_says_what_stops() -> None:
    assert params().stop_on_eos
    assert not params(stop=[]).stop_on_eos
    assert params(stop=[3, 4]).stop_token_ids == [3, 4]
    assert params(stop="END").stop_strings == ["END"]
    assert params(stop=["a", "b"]).stop_strings == ["a", "b"]


@pytest.mark.parametrize(("sent", "used"), [(-1, 0), (0, 0), (5, 5)])
def test_no_top_k_is_zero(sent: int, used: int) -> None:
    assert params(top_k=sent).top_k == used


@pytest.mark.parametrize(("sent", "used"), [(None, 7), (3, 3), (-1, 2**64 - 1)])
def test_a_sampling_seed_is_an_unsigned_64_bit_number(sent: int | None, used: int) -> None:
    assert params(seed=sent).seed == used


def test_options_at_their_defaults_are_accepted() -> None:
    check_sample(topk_sample_logprobs=0, prompt_alt_tokens_k=0, record_stability_info=True)


@pytest.mark.parametrize("num_samples", [0, 1025])
def test_the_number_of_samples_is_bounded(num_samples: int) -> None:
    with pytest.raises(UserError, match="expected 1 to 1024"):
        check_sample(num_samples=num_samples)


@pytest.mark.parametrize("k", [-1, 101])
@pytest.mark.parametrize(
    "option", ["topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"]
)
def test_the_logprobs_per_position_are_bounded(option: str, k: int) -> None:
    """By 128, and by the vocabulary, which has 100 tokens here."""
    with pytest.raises(UserError, match=f"{option} is {k}; expected 0 to 100"):
        check_sample(2, None, **{option: k})


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        check_sample(num_prompt_tokens=0)


def test_a_prompt_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="prompt has token id 100"):
        validate_sample.check_sample(sample_body(), np.asarray([100], np.int32), None, BASE)


def test_a_prompt_and_its_sample_must_fit_the_context() -> None:
    check_sample(30, sampling_params={"max_tokens": 2})

    with pytest.raises(UserError, match="prompt of 31 tokens and max_tokens 2 do not fit"):
        check_sample(31, sampling_params={"max_tokens": 2})


def test_a_prompt_that_fills_the_context_gets_one_token() -> None:
    """As the SDK's ``compute_logprobs`` asks; that token is never fed back."""
    check_sample(32, sampling_params={"max_tokens": 1})
    check_sample(32)

    with pytest.raises(UserError, match="prompt of 32 tokens and max_tokens 2 do not fit"):
        check_sample(32, sampling_params={"max_tokens": 2})
    with pytest.raises(UserError, match="prompt of 33 tokens"):
        check_sample(33)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_a_number_that_the_sdk_sends_as_null_is_not_taken_for_the_default(
    name: str, value: float
) -> None:
    """In strict JSON there is no NaN and no infinity; both arrive as null."""
    options: dict[str, Any] = {name: value}
    sent = types.SamplingParams(**options).model_dump_json()

    with pytest.raises(UserError, match=f"{name} is null"):
        params(**json.loads(sent))


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"prompt_logprobs_last_n": 1}, "without prompt logprobs"),
        ({"prompt_logprobs_last_n": 0, "prompt_logprobs": True}, "has 1 to 4"),
        ({"prompt_logprobs_last_n": 5, "prompt_logprobs": True}, "last_n is 5; .* 5 tokens"),
    ],
)
def test_the_last_n_lie_within_the_scored_part_of_the_prompt(
    asked: dict[str, Any], complaint: str
) -> None:
    check_sample(5, prompt_logprobs_last_n=4, prompt_logprobs=True)

    with pytest.raises(UserError, match=complaint):
        check_sample(5, **asked)


def targets(*tokens: int, num_rows: int = 1) -> PromptTargets:
    values = np.asarray(tokens, np.int64)
    return PromptTargets(Cells(num_rows, values.size // num_rows), values)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (targets(1, 2, num_rows=2), r"shape \[2, 1\]; expected 1 rows"),
        (targets(100), "token id 100; expected 0..99, or -1"),
        (targets(-2), "token id -2"),
        (targets(-1, -1), "names 0 tokens; expected 1 to 128"),
        (targets(*[1] * 129), "names 129 tokens"),
    ],
)
def test_targets_name_some_tokens_of_the_vocabulary_for_each_position(
    asked: PromptTargets, complaint: str
) -> None:
    check_sample(2, targets(5, -1))

    with pytest.raises(UserError, match=complaint):
        check_sample(2, asked)


def test_what_one_sample_reports_is_bounded() -> None:
    large = dataclasses.replace(BASE, max_context_length=100_000)
    body = sample_body(num_samples=8, topk_sample_logprobs=100)
    prompt = np.ones(2, np.int32)
    fewer = sample_body(num_samples=8, topk_sample_logprobs=10)
    validate_sample.check_sample(fewer, prompt, None, large)

    with pytest.raises(UserError, match="may have to report 79998400 logprobs; at most 8388608"):
        validate_sample.check_sample(body, prompt, None, large)
