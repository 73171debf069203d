"""A sample's result as protobuf, or as the JSON that SDKs up to 0.18 read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cyclora_core.payload import Array
from cyclora_core.samples import (
    NO_TOPK_LOGPROB,
    SampledSequence,
    SampleResult,
    StopReason,
    TargetLogprobs,
)
from cyclora_server.wire import schema

_STOP_REASONS = {
    StopReason.STOP: schema.STOP_REASON_STOP,
    StopReason.LENGTH: schema.STOP_REASON_LENGTH,
}


def sample_to_proto(result: SampleResult) -> bytes:
    """A ``SampleResponse``; NaN in the prompt's logprobs reads as None."""
    message = schema.SampleResponse()
    for sequence in result.sequences:
        sequence_message = message.sequences.add(
            stop_reason=_STOP_REASONS[sequence.stop_reason],
            tokens=_bytes(sequence.tokens, "<i4"),
            logprobs=_bytes(sequence.logprobs, "<f4"),
        )
        if sequence.topk is not None:
            _put_topk(
                sequence_message.topk_sampled_logprobs,
                sequence.topk.tokens,
                sequence.topk.logprobs,
            )
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = _bytes(result.prompt_logprobs, "<f4")
    if result.topk_prompt_tokens is not None and result.topk_prompt_logprobs is not None:
        _put_topk(
            message.topk_prompt_logprobs, result.topk_prompt_tokens, result.topk_prompt_logprobs
        )
    if result.alt_tokens is not None and result.alt_logprobs is not None:
        alternatives = message.prompt_alt_tokens
        _put_dense(alternatives.tokens, result.alt_tokens, schema.DTYPE_INT32)
        _put_dense(alternatives.logprobs, result.alt_logprobs, schema.DTYPE_FLOAT32)
    message.prompt_cache_hit_tokens = result.prompt_cache_hit_tokens
    if result.targets is not None:
        _put_targets(message.target_prompt_logprobs, result.targets)
    return message.SerializeToString()


def _put_topk(message: Any, tokens: Array, logprobs: Array) -> None:
    message.length, message.k = tokens.shape
    message.token_ids = _bytes(tokens, "<i4")
    message.logprobs = _bytes(logprobs, "<f4")


def _put_dense(message: Any, array: Array, dtype: int) -> None:
    message.dense = _bytes(array, "<i4" if dtype == schema.DTYPE_INT32 else "<f4")
    message.dtype = dtype
    message.shape.extend(array.shape)


def _put_targets(message: Any, targets: TargetLogprobs) -> None:
    """In the layout that was asked in: the client reads the answer by the same indices."""
    cells = targets.cells
    values = _bytes(targets.logprobs, "<f4")
    if cells.crow is None or cells.col is None:
        message.dense = values
    else:
        csr = message.sparse_csr
        csr.values = values
        csr.crow_indices = _bytes(cells.crow, "<i8")
        csr.col_indices = _bytes(cells.col, "<i8")
    message.dtype = schema.DTYPE_FLOAT32
    message.shape.extend([cells.num_rows, cells.num_columns])


def _bytes(array: Array, dtype: str) -> bytes:
    return np.ascontiguousarray(array, np.dtype(dtype)).tobytes()


def sample_to_json(result: SampleResult) -> dict[str, Any]:
    """What SDKs without protobuf read; they ask for nothing but the prompt's own logprobs."""
    value: dict[str, Any] = {
        "type": "sample",
        "sequences": [_sequence_to_json(sequence) for sequence in result.sequences],
    }
    if result.prompt_logprobs is not None:
        value["prompt_logprobs"] = _nan_as_none(result.prompt_logprobs.tolist())
    if result.topk_prompt_tokens is not None and result.topk_prompt_logprobs is not None:
        value["topk_prompt_logprobs"] = list(
            _topk_rows(result.topk_prompt_tokens, result.topk_prompt_logprobs)
        )
    if result.alt_tokens is not None and result.alt_logprobs is not None:
        value["prompt_alt_tokens"] = {
            "tokens": _tensor_to_json(result.alt_tokens, "int64"),
            "logprobs": _tensor_to_json(result.alt_logprobs, "float32"),
        }
    if result.targets is not None:
        value["target_prompt_logprobs"] = _targets_to_json(result.targets)
    return value


def _sequence_to_json(sequence: SampledSequence) -> dict[str, Any]:
    value: dict[str, Any] = {
        "stop_reason": str(sequence.stop_reason),
        "tokens": sequence.tokens.tolist(),
        "logprobs": sequence.logprobs.tolist(),
    }
    if sequence.topk is not None:
        value["topk_logprobs"] = list(_topk_rows(sequence.topk.tokens, sequence.topk.logprobs))
    return value


def _tensor_to_json(array: Array, dtype: str) -> dict[str, Any]:
    return {"data": array.reshape(-1).tolist(), "dtype": dtype, "shape": list(array.shape)}


def _targets_to_json(targets: TargetLogprobs) -> dict[str, Any]:
    cells = targets.cells
    value: dict[str, Any] = {
        "data": targets.logprobs.tolist(),
        "dtype": "float32",
        "shape": [cells.num_rows, cells.num_columns],
    }
    if cells.crow is not None and cells.col is not None:
        value["sparse_crow_indices"] = cells.crow.tolist()
        value["sparse_col_indices"] = cells.col.tolist()
    return value


def _nan_as_none(values: Sequence[float]) -> list[float | None]:
    return [None if value != value else value for value in values]


def _topk_rows(tokens: Array, logprobs: Array) -> Iterator[list[list[float]] | None]:
    """Pairs of token and logprob per position, without padding; None where there is nothing."""
    for row_tokens, row_logprobs in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        pairs = zip(row_tokens, row_logprobs, strict=True)
        yield [[token, lp] for token, lp in pairs if lp != NO_TOPK_LOGPROB] or None
