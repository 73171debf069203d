from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cyclora_core.errors import UserError
from cyclora_core.operations import SamplingParams
from cyclora_server import validate
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import parse
from server.double import BASE, SAMPLER


def sample_body(**changes: Any) -> bodies.Sample:
    value = {"sampling_session_id": SAMPLER, "seq_id": 0, "prompt": {"chunks": []}}
    return parse(bodies.Sample, value | changes)


def params(**sampling: Any) -> SamplingParams:
    return validate.sampling_params(sample_body(sampling_params=sampling), BASE, seed=7)


def check_sample(num_prompt_tokens: int = 2, **changes: Any) -> None:
    prompt = np.ones(num_prompt_tokens, np.int32)
    validate.check_sample(sample_body(**changes), prompt, BASE)


@pytest.mark.parametrize("rank", [0, -1, 65])
def test_a_rank_that_the_base_model_does_not_take_is_refused(rank: int) -> None:
    with pytest.raises(UserError, match=f"rank is {rank}; org/tiny takes 1 to 64"):
        validate.lora_config(bodies.LoraSettings(rank=rank), BASE, seed=0)


def test_an_adapter_that_trains_nothing_is_refused() -> None:
    nothing = bodies.LoraSettings(train_attn=False, train_mlp=False, train_unembed=False)

    with pytest.raises(UserError, match="trains nothing"):
        validate.lora_config(nothing, BASE, seed=0)


def test_a_seed_is_derived_only_when_none_was_sent() -> None:
    assert validate.lora_config(bodies.LoraSettings(), BASE, seed=5).seed == 5
    assert validate.lora_config(bodies.LoraSettings(seed=0), BASE, seed=5).seed == 0


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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("topk_sample_logprobs", 1),
        ("target_prompt_logprobs", {"data": [], "dtype": "int64"}),
        ("prompt_alt_tokens_k", 1),
        ("prompt_logprobs_last_n", 1),
    ],
)
def test_an_option_that_is_not_supported_is_refused_by_name(option: str, value: Any) -> None:
    """Answering without what was asked for would be a silent degradation."""
    with pytest.raises(UserError, match=f"{option} is not supported by this server"):
        check_sample(**{option: value})


def test_options_at_their_defaults_are_accepted() -> None:
    check_sample(topk_sample_logprobs=0, prompt_alt_tokens_k=0, record_stability_info=True)


@pytest.mark.parametrize("num_samples", [0, 1025])
def test_the_number_of_samples_is_bounded(num_samples: int) -> None:
    with pytest.raises(UserError, match="expected 1 to 1024"):
        check_sample(num_samples=num_samples)


@pytest.mark.parametrize("k", [-1, 129])
def test_the_number_of_top_prompt_logprobs_is_bounded(k: int) -> None:
    with pytest.raises(UserError, match="expected 0 to 128"):
        check_sample(topk_prompt_logprobs=k)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        check_sample(num_prompt_tokens=0)


def test_a_prompt_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="prompt has token id 100"):
        validate.check_sample(sample_body(), np.asarray([100], np.int32), BASE)


def test_a_prompt_and_its_sample_must_fit_the_context() -> None:
    check_sample(30, sampling_params={"max_tokens": 2})

    with pytest.raises(UserError, match="prompt of 31 tokens and max_tokens 2 do not fit"):
        check_sample(31, sampling_params={"max_tokens": 2})


def test_a_prompt_must_leave_room_for_one_token() -> None:
    check_sample(31)

    with pytest.raises(UserError, match="prompt of 32 tokens"):
        check_sample(32)


@pytest.mark.parametrize("ttl_s", [0, 3599, 315360001])
def test_a_ttl_outside_its_range_is_refused(ttl_s: int) -> None:
    with pytest.raises(UserError, match=f"ttl_seconds is {ttl_s}; expected 3600"):
        validate.check_ttl(ttl_s)


@pytest.mark.parametrize("ttl_s", [None, 3600, 315360000])
def test_a_ttl_within_its_range_is_accepted(ttl_s: int | None) -> None:
    validate.check_ttl(ttl_s)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a b", "x" * 129, "a%2f"])
def test_a_checkpoint_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        validate.checkpoint_name(name, 1)


def test_a_checkpoint_name_like_an_ephemeral_one_is_refused() -> None:
    with pytest.raises(UserError, match="is reserved"):
        validate.checkpoint_name("ephemeral-3", 1)


def test_a_save_without_a_name_gets_one_of_its_own() -> None:
    assert validate.checkpoint_name(None, 12) == "seq-000012"


def test_an_unknown_kind_of_sampler_save_is_refused() -> None:
    with pytest.raises(UserError, match="expected one of snapshot, inflight"):
        validate.check_sampler_kind("live")
