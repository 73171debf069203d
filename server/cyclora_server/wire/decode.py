"""Passes and prompts out of the wire format, in two stages.

The first stage reads only what numbers a request; whatever fails there cannot become a future. The
second decodes its data; what fails there becomes a failed future that uses up the seq_id.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from cyclora_core.errors import UserError
from cyclora_core.losses import CUSTOM, loss_rule
from cyclora_core.operations import Datum, OperationKind, PassBody
from cyclora_core.payload import Array
from cyclora_core.samples import PromptTargets
from cyclora_server.problems import InvalidBody
from cyclora_server.wire import bodies, schema, tensors
from cyclora_server.wire.bounds import check_protobuf
from cyclora_server.wire.reading import parse, read_json
from cyclora_server.wire.tensors import Budget

_MAX_TOKEN = 2**31 - 1
_LOSS_ID = "loss_id"


@dataclass(frozen=True, slots=True)
class PassRequest:
    """A pass whose number is known and whose data is still encoded."""

    model_id: str
    seq_id: int
    kind: OperationKind
    decode: Callable[[Budget], PassBody]
    """Decodes the data; raises UserError for what can never be run."""


def pass_from_proto(raw: bytes) -> PassRequest:
    """Read a protobuf ``ForwardBackwardRequest``.

    Raises:
        InvalidBody: it does not parse, or holds no model_id and seq_id.
        PayloadTooLarge: it has too many messages.
    """
    check_protobuf(raw, schema.ForwardBackwardRequest.DESCRIPTOR)
    try:
        message = schema.ForwardBackwardRequest.FromString(raw)
    except DecodeError:
        raise InvalidBody("the body is not a protobuf ForwardBackwardRequest") from None
    numbered = parse(bodies.Numbered, {"model_id": message.model_id, "seq_id": message.seq_id})
    kind = OperationKind.FORWARD if message.forward_only else OperationKind.FORWARD_BACKWARD
    return PassRequest(
        numbered.model_id, numbered.seq_id, kind, lambda budget: _decode_proto(message, budget)
    )


def pass_from_json(raw: bytes, input_name: str, kind: OperationKind) -> PassRequest:
    """Read the JSON form of SDKs before 0.25; ``input_name`` is the field with the data.

    Raises:
        InvalidBody: it does not parse, or holds no model_id and seq_id.
    """
    value = read_json(raw)
    numbered = parse(bodies.Numbered, value)
    data = value.get(input_name)
    return PassRequest(
        numbered.model_id, numbered.seq_id, kind, lambda budget: _decode_json(data, budget)
    )


def prompt_tokens(model_input: bodies.ModelInput) -> Array:
    """The tokens of a JSON ``ModelInput``, its chunks end to end.

    Raises:
        UserError: a chunk is no text, or is empty, which is a slip of whoever cut the prompt.
    """
    for index, chunk in enumerate(model_input.chunks):
        if "tokens" in chunk and not chunk["tokens"]:
            raise UserError(f"prompt is not usable: Chunk {index} has empty tokens list")
    return _tokens_from_json("prompt", model_input.chunks)


def prompt_targets(tensor: bodies.TensorData, max_bytes: int) -> PromptTargets:
    """Tokens to score at prompt positions, dense or sparse as they were sent."""
    if tensor.dtype != "int64":
        raise UserError(f"target_prompt_logprobs has dtype {tensor.dtype[:40]!r}; expected int64")
    cells, tokens = tensors.cells_from_json("target_prompt_logprobs", tensor, Budget(max_bytes))
    return PromptTargets(cells, tokens)


def _decode_proto(message: Any, budget: Budget) -> PassBody:
    loss_rule(message.loss_fn)
    config: dict[str, Any] = dict(message.loss_fn_config)
    # Newer SDKs send every number twice, and text in the second map only.
    for name, value in message.loss_fn_config_v2.items():
        config[name] = getattr(value, value.WhichOneof("value") or "number")
    data: list[Datum] = []
    for i, datum in enumerate(message.data):
        inputs = {
            name: tensors.from_proto(f"data[{i}].loss_fn_inputs[{name!r}]", tensor, budget)
            for name, tensor in datum.loss_fn_inputs.items()
        }
        data.append(Datum(_tokens_from_proto(f"data[{i}]", datum.model_input), inputs))
    return _pass_body(message.loss_fn, config, data)


def _decode_json(value: Any, budget: Budget) -> PassBody:
    body = parse(bodies.PassInput, value)
    loss_rule(body.loss_fn)
    data: list[Datum] = []
    for i, datum in enumerate(body.data):
        inputs = {
            name: tensors.from_json(f"data[{i}].loss_fn_inputs[{name!r}]", tensor, budget)
            for name, tensor in datum.loss_fn_inputs.items()
        }
        data.append(Datum(_tokens_from_json(f"data[{i}]", datum.model_input.chunks), inputs))
    return _pass_body(body.loss_fn, body.loss_fn_config, data)


def _pass_body(loss_fn: str, config: Mapping[str, Any], data: list[Datum]) -> PassBody:
    """With the id of an uploaded loss taken out of the config, which holds numbers otherwise."""
    if loss_fn != CUSTOM:
        return PassBody(loss_fn, _numbers(config), data)
    loss_id = config.get(_LOSS_ID)
    if not isinstance(loss_id, str):
        raise UserError(
            f"loss_fn {CUSTOM!r} needs loss_fn_config[{_LOSS_ID!r}], a text; expected what "
            "create_custom_loss gave"
        )
    numbers = {name: value for name, value in config.items() if name != _LOSS_ID}
    return PassBody(loss_fn, _numbers(numbers), data, loss_id)


def _numbers(config: Mapping[str, Any]) -> dict[str, float]:
    for name, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"loss_fn_config[{name[:60]!r}] is {str(value)[:60]!r}; expected a number"
            )
        if abs(value) > sys.float_info.max:
            raise UserError(f"loss_fn_config[{name[:60]!r}] is too large for a number")
    return {name: float(value) for name, value in config.items()}


def _tokens_from_proto(where: str, chunks: Sequence[Any]) -> Array:
    parts: list[Array] = []
    for chunk in chunks:
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            raise _unsupported_chunk(where, kind)
        tokens = chunk.encoded_text.tokens
        if len(tokens) % 4:
            raise UserError(f"{where} has tokens of {len(tokens)} bytes; expected 4 per token")
        parts.append(np.frombuffer(tokens, np.dtype("<i4")))
    return _joined(parts)


def _tokens_from_json(where: str, chunks: Sequence[Mapping[str, Any]]) -> Array:
    parts: list[Array] = []
    for chunk in chunks:
        kind = chunk.get("type") or _kind_of(chunk)
        if kind != "encoded_text":
            raise _unsupported_chunk(where, kind)
        tokens = tensors.from_json(
            f"{where} tokens",
            parse(bodies.TensorData, {"data": chunk.get("tokens"), "dtype": "int64"}),
            Budget(_MAX_TOKEN),
        )
        if tokens.size and (tokens.min() < 0 or tokens.max() > _MAX_TOKEN):
            raise UserError(f"{where} has a token id outside 0..{_MAX_TOKEN}")
        parts.append(tokens.astype(np.int32))
    return _joined(parts)


def _kind_of(chunk: Mapping[str, Any]) -> str:
    """Of a chunk that does not say it, as those of SDKs up to 0.16."""
    fields = {"tokens": "encoded_text", "dmel": "dmel", "location": "image_asset_pointer"}
    return next((kind for field, kind in fields.items() if field in chunk), "image")


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def _unsupported_chunk(where: str, kind: Any) -> UserError:
    return UserError(
        f"{where} has a chunk of type {str(kind)[:40]!r}; send encoded_text chunks only, the base "
        "models served here read no images or audio"
    )
