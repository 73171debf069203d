from __future__ import annotations

from typing import Any

import pytest
from tinker import types

from cyclora_server.problems import InvalidBody
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import MAX_METADATA_CHARS, parse, read_json


def test_unknown_fields_are_ignored() -> None:
    assert parse(bodies.SessionRef, {"session_id": "s", "new": 1}).session_id == "s"


def test_null_means_absent() -> None:
    body = parse(bodies.CreateModel, {
        "session_id": "s",
        "model_seq_id": 0,
        "base_model": "b",
        "lora_config": {"rank": None, "train_mlp": None},
        "user_metadata": None,
        "optimizer_config": None,
    })  # fmt: skip

    assert body.lora_config == bodies.LoraSettings()
    assert body.user_metadata == {}


def test_adam_defaults_are_the_sdks() -> None:
    assert bodies.AdamParams().model_dump() == types.AdamParams().model_dump()


def test_sampling_defaults_are_the_sdks() -> None:
    assert bodies.SamplingParamsBody().model_dump() == types.SamplingParams().model_dump()


def test_lora_defaults_are_the_sdks() -> None:
    sdk = types.LoraConfig(rank=32).model_dump()

    assert bodies.LoraSettings().model_dump() == sdk


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (True, "true"), ("a", "a"), (1.5, "1.5"), ({"b": [None]}, '{"b": [null]}')],
)
def test_metadata_values_become_text(value: Any, text: str) -> None:
    body = parse(bodies.CreateSession, {"user_metadata": {"k": value}})

    assert body.user_metadata == {"k": text}


def test_a_violation_names_the_field_and_the_value() -> None:
    with pytest.raises(InvalidBody, match=r"seq_id: .*, got '0'"):
        parse(bodies.Numbered, {"model_id": "m", "seq_id": 0})


@pytest.mark.parametrize("seq_id", [-1, 2**31, "1e3", 1.5])
def test_the_number_of_a_models_request_is_a_positive_int32(seq_id: Any) -> None:
    with pytest.raises(InvalidBody, match="seq_id: "):
        parse(bodies.Numbered, {"model_id": "m", "seq_id": seq_id})

    assert parse(bodies.Numbered, {"model_id": "m", "seq_id": 2**31 - 1}).seq_id == 2**31 - 1


def test_metadata_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidBody, match="user_metadata"):
        parse(bodies.CreateSession, {"user_metadata": [1]})


def test_metadata_is_bounded() -> None:
    with pytest.raises(InvalidBody, match="at most 65536 are kept"):
        parse(bodies.CreateSession, {"user_metadata": {"k": "v" * MAX_METADATA_CHARS}})


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(InvalidBody, match="not JSON"):
        read_json(b"\x00")


def test_json_nested_too_deeply_is_refused() -> None:
    with pytest.raises(InvalidBody, match="not JSON"):
        read_json(b"[" * 100_000)
