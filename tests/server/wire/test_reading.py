from __future__ import annotations

from typing import Any

import pytest
from tinker import types

from cyclora_server.problems import InvalidBody
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import MAX_METADATA_CHARS, Body, parse, read_json

BODY_TYPES = [
    each
    for each in vars(bodies).values()
    if isinstance(each, type) and issubclass(each, Body) and each is not Body
]


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


NULL_IS_NO_DEFAULT = {
    *(
        (each, name)
        for each in (bodies.AdamParams, bodies.DimuonParams)
        for name in each.model_fields
    ),
    *((bodies.SamplingParamsBody, name) for name in ("temperature", "top_p")),
}
"""The SDK writes NaN and infinity as null: taken for the default they would be hidden."""


@pytest.mark.parametrize("body_type", BODY_TYPES, ids=lambda each: each.__name__)
def test_null_means_absent_in_every_request(body_type: type[Body]) -> None:
    for name, field in body_type.model_fields.items():
        if not field.is_required() and (body_type, name) not in NULL_IS_NO_DEFAULT:
            assert complaint(body_type, {name: None}) == complaint(body_type, {})


@pytest.mark.parametrize("body_type", BODY_TYPES, ids=lambda each: each.__name__)
def test_a_field_of_a_later_sdk_is_ignored_in_every_request(body_type: type[Body]) -> None:
    if body_type is not bodies.OptimizerConfig:
        assert complaint(body_type, {"of_a_later_sdk": [1]}) == complaint(body_type, {})


def complaint(body_type: type[Body], value: Any) -> str | Body:
    try:
        return parse(body_type, value)
    except InvalidBody as error:
        return str(error)


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
