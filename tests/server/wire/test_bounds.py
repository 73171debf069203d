from __future__ import annotations

import time

import pytest

from cyclora_core.errors import PayloadTooLarge
from cyclora_server.wire import bounds, schema

REQUEST = schema.ForwardBackwardRequest.DESCRIPTOR


def body_of(num_data: int) -> bytes:
    message = schema.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy")
    for _ in range(num_data):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = bytes(4000)
        for name in ("target_tokens", "weights", "logprobs"):
            tensor = datum.loss_fn_inputs[name]
            tensor.shape.extend([1000])
            tensor.dense = bytes(1000)
    return message.SerializeToString()


@pytest.mark.parametrize(
    "piece",
    [
        b"\x1a\x00",  # empty data
        b"\x3a\x00",  # empty entries of loss_fn_config_v2
        b"\x1a\x02\x0a\x00",  # a datum with an empty chunk
        b"\x1a\x04\x0a\x02\x0a\x00",  # an empty text in it
    ],
)
def test_a_body_of_hollow_messages_is_refused(piece: bytes) -> None:
    with pytest.raises(PayloadTooLarge, match="messages"):
        bounds.check_protobuf(piece * 250_000, REQUEST)


def test_the_arms_of_one_chunk_cannot_multiply() -> None:
    arms = b"\x0a\x00\x12\x00" * 120_000
    chunk = b"\x0a" + varint(len(arms)) + arms
    datum = b"\x1a" + varint(len(chunk)) + chunk

    with pytest.raises(PayloadTooLarge):
        bounds.check_protobuf(datum, REQUEST)


def varint(value: int) -> bytes:
    parts: list[int] = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def test_the_largest_request_of_the_sdk_is_accepted_at_once() -> None:
    raw = body_of(1024)

    started_s = time.process_time()
    bounds.check_protobuf(raw, REQUEST)

    assert time.process_time() - started_s < 1.0


@pytest.mark.parametrize("raw", [b"\x1a" * 2_000_000, b"\xff" * 2_000_000, b"\x1b" * 2_000_000])
def test_what_is_malformed_is_left_to_the_parser(raw: bytes) -> None:
    bounds.check_protobuf(raw, REQUEST)


@pytest.mark.parametrize("piece", [b"{},", b"[],", b"0,"])
def test_a_json_text_of_too_many_elements_is_refused(piece: bytes) -> None:
    with pytest.raises(PayloadTooLarge, match="at most"):
        bounds.check_json(b"[" + piece * 9_000_000 + b"0]")


def test_a_json_text_of_a_million_numbers_is_accepted() -> None:
    bounds.check_json(b"[" + b"-0.25," * 1_000_000 + b"0]")
