"""Results as the polling client wants them: protobuf where the SDK insists on it, else JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from cyclora_core import payload
from cyclora_core.operations import (
    RESULT_TYPES,
    CustomLossResult,
    ModelResult,
    OperationKind,
    OptimStepResult,
    PassResult,
    SampleResult,
    SaveWeightsResult,
    StopReason,
)
from cyclora_core.payload import Array
from cyclora_server.wire import schema

PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_OUTPUT_TYPE = "ArrayRecord"
_NO_TOPK_LOGPROB = -99999.0

_STOP_REASONS = {
    StopReason.STOP: schema.STOP_REASON_STOP,
    StopReason.LENGTH: schema.STOP_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """The body of an answer and its media type."""

    content: bytes
    media_type: str


def encode_result(kind: OperationKind, data: bytes, accept: str) -> Encoded:
    """Turn a stored result into the form that this poll's ``Accept`` header asks for."""
    result: Any = RESULT_TYPES[kind].from_payload(payload.decode(data))
    wants_protobuf = PROTOBUF in accept
    if isinstance(result, PassResult):
        if wants_protobuf:
            return Encoded(pass_to_proto(result), PROTOBUF)
        return _as_json(_pass_to_json(result))
    if isinstance(result, SampleResult):
        if wants_protobuf:
            return Encoded(sample_to_proto(result), PROTOBUF)
        return _as_json(_sample_to_json(result))
    return _as_json(_small_result(kind, result))


def _as_json(value: dict[str, Any]) -> Encoded:
    return Encoded(json.dumps(value, separators=(",", ":")).encode(), _JSON)


def _small_result(
    kind: OperationKind,
    result: ModelResult | OptimStepResult | SaveWeightsResult | CustomLossResult,
) -> dict[str, Any]:
    if isinstance(result, CustomLossResult):
        return {"type": str(kind), "loss_id": result.loss_id}
    if isinstance(result, OptimStepResult):
        return {"metrics": dict(result.metrics) or None}
    fields: dict[str, Any] = {"type": str(kind), "path": result.path}
    if isinstance(result, ModelResult):
        fields["model_id"] = result.model_id
    else:
        fields["sampling_session_id"] = result.sampling_session_id
    return {name: value for name, value in fields.items() if value is not None}


def pass_to_proto(result: PassResult) -> bytes:
    """A ``ForwardBackwardOutput``; one ArrayRecord per run of data with equal trailing shape."""
    message = schema.ForwardBackwardOutput(loss_fn_output_type=_OUTPUT_TYPE)
    message.metrics.update(result.metrics)
    for trailing_shape, run in groupby(result.logprobs, lambda logprobs: logprobs.shape[1:]):
        arrays = [np.ascontiguousarray(logprobs, np.dtype("<f4")) for logprobs in run]
        offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=np.dtype("<i8"))
        record = message.loss_fn_outputs.add(type_tag=_OUTPUT_TYPE, num_datums=len(arrays))
        field = record.fields["logprobs"]
        field.data = b"".join(array.tobytes() for array in arrays)
        field.offsets = offsets.tobytes()
        field.dtype = schema.DTYPE_FLOAT32
        field.trailing_shape.extend(trailing_shape)
    return message.SerializeToString()


def _pass_to_json(result: PassResult) -> dict[str, Any]:
    outputs = [
        {
            "logprobs": {
                "data": logprobs.astype(np.float32).reshape(-1).tolist(),
                "dtype": "float32",
                "shape": list(logprobs.shape),
            }
        }
        for logprobs in result.logprobs
    ]
    return {
        "loss_fn_output_type": _OUTPUT_TYPE,
        "loss_fn_outputs": outputs,
        "metrics": dict(result.metrics),
    }


def sample_to_proto(result: SampleResult) -> bytes:
    """A ``SampleResponse``; NaN in the prompt's logprobs reads as None."""
    message = schema.SampleResponse()
    for sequence in result.sequences:
        message.sequences.add(
            stop_reason=_STOP_REASONS[sequence.stop_reason],
            tokens=_bytes(sequence.tokens, "<i4"),
            logprobs=_bytes(sequence.logprobs, "<f4"),
        )
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = _bytes(result.prompt_logprobs, "<f4")
    if result.topk_prompt_tokens is not None and result.topk_prompt_logprobs is not None:
        topk = message.topk_prompt_logprobs
        topk.length, topk.k = result.topk_prompt_tokens.shape
        topk.token_ids = _bytes(result.topk_prompt_tokens, "<i4")
        topk.logprobs = _bytes(result.topk_prompt_logprobs, "<f4")
    return message.SerializeToString()


def _bytes(array: Array, dtype: str) -> bytes:
    return np.ascontiguousarray(array, np.dtype(dtype)).tobytes()


def _sample_to_json(result: SampleResult) -> dict[str, Any]:
    value: dict[str, Any] = {
        "type": "sample",
        "sequences": [
            {
                "stop_reason": str(sequence.stop_reason),
                "tokens": sequence.tokens.tolist(),
                "logprobs": sequence.logprobs.tolist(),
            }
            for sequence in result.sequences
        ],
    }
    if result.prompt_logprobs is not None:
        value["prompt_logprobs"] = _nan_as_none(result.prompt_logprobs.tolist())
    if result.topk_prompt_tokens is not None and result.topk_prompt_logprobs is not None:
        value["topk_prompt_logprobs"] = list(
            _topk_rows(result.topk_prompt_tokens, result.topk_prompt_logprobs)
        )
    return value


def _nan_as_none(values: Sequence[float]) -> list[float | None]:
    return [None if value != value else value for value in values]


def _topk_rows(tokens: Array, logprobs: Array) -> Iterator[list[list[float]] | None]:
    """Pairs of token and logprob per position, without padding; None where there is nothing."""
    for row_tokens, row_logprobs in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        pairs = zip(row_tokens, row_logprobs, strict=True)
        yield [[token, lp] for token, lp in pairs if lp != _NO_TOPK_LOGPROB] or None
