"""Results as the polling client wants them: protobuf where the SDK insists on it, else JSON."""

from __future__ import annotations

import json
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
    SaveWeightsResult,
)
from cyclora_core.samples import SampleResult
from cyclora_server.wire import schema
from cyclora_server.wire.encode_sample import sample_to_json, sample_to_proto

PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_OUTPUT_TYPE = "ArrayRecord"


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
        return _as_json(sample_to_json(result))
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
        if kind is OperationKind.SAVE_WEIGHTS_EXTERNAL:
            fields["size_bytes"] = result.num_bytes
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
