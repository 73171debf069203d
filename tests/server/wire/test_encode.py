"""Results encoded by the server, read back by the SDK's own decoder."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from tinker.proto.response_conv import (
    deserialize_forward_backward_output,
    deserialize_sample_response,
)

from cyclora_core import payload
from cyclora_core.operations import (
    ModelResult,
    OperationKind,
    OptimStepResult,
    PassResult,
    Result,
    SaveWeightsResult,
)
from cyclora_core.samples import (
    Cells,
    SampledSequence,
    SampleResult,
    StopReason,
    TargetLogprobs,
    TopkTable,
)
from cyclora_server.wire import encode, schema
from cyclora_server.wire.encode import PROTOBUF


def floats(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(values, np.float32)


def encoded(kind: OperationKind, result: Result, accept: str) -> encode.Encoded:
    return encode.encode_result(kind, payload.encode(result.to_payload()), accept)


def as_json(kind: OperationKind, result: Result) -> Any:
    answer = encoded(kind, result, "application/json")
    assert answer.media_type == "application/json"
    return json.loads(answer.content)


def sample(**changes: Any) -> SampleResult:
    sequences = [
        SampledSequence(np.asarray([4, 5], np.int32), floats([-0.5, -1]), StopReason.STOP),
        SampledSequence(np.asarray([6], np.int32), floats([-2]), StopReason.LENGTH),
    ]
    return SampleResult(sequences, **changes)


def topk_sample() -> SampleResult:
    return sample(
        prompt_logprobs=floats([np.nan, -0.25]),
        topk_prompt_tokens=np.asarray([[0, 0], [7, 8]], np.int32),
        topk_prompt_logprobs=floats([[-99999, -99999], [-1, -2]]),
    )


def test_the_sdk_reads_the_logprobs_of_every_datum() -> None:
    result = PassResult([floats([-1, -2]), floats([-3])], {"loss:sum": 6.0})

    answer = encoded(OperationKind.FORWARD_BACKWARD, result, PROTOBUF)
    output = deserialize_forward_backward_output(answer.content)

    assert answer.media_type == PROTOBUF
    assert output.metrics == {"loss:sum": 6.0}
    assert [each["logprobs"].tolist() for each in output.loss_fn_outputs] == [[-1, -2], [-3]]


def test_the_sdk_reads_ragged_top_k_logprobs_in_datum_order() -> None:
    arrays = [floats([[-1, -2], [-3, -4]]), floats([-5]), floats([[-6, -7]])]

    answer = encoded(OperationKind.FORWARD, PassResult(arrays, {}), PROTOBUF)
    output = deserialize_forward_backward_output(answer.content)

    assert [each["logprobs"].to_numpy().tolist() for each in output.loss_fn_outputs] == [
        array.tolist() for array in arrays
    ]


def test_data_of_one_trailing_shape_share_a_record() -> None:
    result = PassResult([floats([-1]), floats([-2, -3]), floats([[-4, -5]])], {})

    message = schema.ForwardBackwardOutput.FromString(encode.pass_to_proto(result))

    assert [record.num_datums for record in message.loss_fn_outputs] == [2, 1]


def test_older_sdks_get_a_pass_as_json() -> None:
    result = PassResult([floats([[-1, -2]])], {"loss:sum": 3.0})

    assert as_json(OperationKind.FORWARD, result) == {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [
            {"logprobs": {"data": [-1.0, -2.0], "dtype": "float32", "shape": [1, 2]}}
        ],
        "metrics": {"loss:sum": 3.0},
    }


def test_the_sdk_reads_sampled_sequences() -> None:
    answer = encoded(OperationKind.SAMPLE, sample(), PROTOBUF)
    response = deserialize_sample_response(answer.content)

    assert [each.tokens for each in response.sequences] == [[4, 5], [6]]
    assert [each.logprobs for each in response.sequences] == [[-0.5, -1], [-2]]
    assert [each.stop_reason for each in response.sequences] == ["stop", "length"]
    assert response.prompt_logprobs is None
    assert response.topk_prompt_logprobs is None


def test_the_sdk_reads_nothing_for_the_first_prompt_token() -> None:
    answer = encoded(OperationKind.SAMPLE, topk_sample(), PROTOBUF)
    response = deserialize_sample_response(answer.content)

    assert response.prompt_logprobs == [None, -0.25]
    assert response.topk_prompt_logprobs == [None, [(7, -1.0), (8, -2.0)]]


def test_the_sdk_reads_the_top_k_of_sampled_tokens() -> None:
    topk = TopkTable(np.asarray([[4, 9], [5, 4]], np.int32), floats([[-0.5, -3], [-1, -1.5]]))
    sequence = SampledSequence(
        np.asarray([4, 5], np.int32), floats([-0.5, -1]), StopReason.STOP, topk
    )

    answer = encoded(OperationKind.SAMPLE, SampleResult([sequence]), PROTOBUF)
    (got,) = deserialize_sample_response(answer.content).sequences

    assert got.topk_logprobs == [[(4, -0.5), (9, -3.0)], [(5, -1.0), (4, -1.5)]]


def test_the_sdk_reads_alternatives_of_the_prompt() -> None:
    result = sample(
        alt_tokens=np.asarray([[7, 8, 7]], np.int32), alt_logprobs=floats([[-1, -2, -1]])
    )

    answer = encoded(OperationKind.SAMPLE, result, PROTOBUF)
    alternatives = deserialize_sample_response(answer.content).prompt_alt_tokens

    assert alternatives is not None
    assert alternatives.tokens.dtype == "int64"
    assert alternatives.tokens.to_numpy().tolist() == [[7, 8, 7]]
    assert alternatives.logprobs.to_numpy().tolist() == [[-1, -2, -1]]


def test_the_sdk_reads_dense_targets_in_their_shape() -> None:
    targets = TargetLogprobs(Cells(2, 2), floats([-1, 0, -2, -3]))

    answer = encoded(OperationKind.SAMPLE, sample(targets=targets), PROTOBUF)
    got = deserialize_sample_response(answer.content).target_prompt_logprobs

    assert got is not None
    assert got.to_numpy().tolist() == [[-1, 0], [-2, -3]]


def test_the_sdk_reads_sparse_targets_by_the_indices_it_sent() -> None:
    cells = Cells(3, 9, np.asarray([0, 0, 2, 2]), np.asarray([1, 8]))
    targets = TargetLogprobs(cells, floats([-1, 0]))

    answer = encoded(OperationKind.SAMPLE, sample(targets=targets), PROTOBUF)
    got = deserialize_sample_response(answer.content).target_prompt_logprobs

    assert got is not None
    assert got.shape == [3, 9]
    assert (got.sparse_crow_indices, got.sparse_col_indices) == ([0, 0, 2, 2], [1, 8])
    assert np.asarray(got.data).tolist() == [-1, 0]


def test_what_was_not_asked_is_absent() -> None:
    answer = encoded(OperationKind.SAMPLE, sample(), PROTOBUF)
    response = deserialize_sample_response(answer.content)

    assert response.prompt_alt_tokens is None
    assert response.target_prompt_logprobs is None
    assert response.prompt_cache_hit_tokens == 0
    assert [each.topk_logprobs for each in response.sequences] == [None, None]


def test_the_sdk_reads_how_much_of_the_prompt_was_found_computed() -> None:
    result = dataclasses.replace(topk_sample(), prompt_cache_hit_tokens=48)

    answer = encoded(OperationKind.SAMPLE, result, PROTOBUF)

    assert deserialize_sample_response(answer.content).prompt_cache_hit_tokens == 48


def test_everything_a_sample_reports_has_a_json_form() -> None:
    topk = TopkTable(np.asarray([[4]], np.int32), floats([[-0.5]]))
    sequence = SampledSequence(np.asarray([4], np.int32), floats([-0.5]), StopReason.STOP, topk)
    sparse = Cells(1, 9, np.asarray([0, 1]), np.asarray([8]))
    result = SampleResult(
        [sequence],
        alt_tokens=np.asarray([[7]], np.int32),
        alt_logprobs=floats([[-1]]),
        targets=TargetLogprobs(sparse, floats([-2])),
    )

    value = as_json(OperationKind.SAMPLE, result)

    assert value["sequences"][0]["topk_logprobs"] == [[[4, -0.5]]]
    assert value["prompt_alt_tokens"] == {
        "tokens": {"data": [7], "dtype": "int64", "shape": [1, 1]},
        "logprobs": {"data": [-1.0], "dtype": "float32", "shape": [1, 1]},
    }
    assert value["target_prompt_logprobs"] == {
        "data": [-2.0],
        "dtype": "float32",
        "shape": [1, 9],
        "sparse_crow_indices": [0, 1],
        "sparse_col_indices": [8],
    }


def test_older_sdks_get_a_sample_as_json() -> None:
    assert as_json(OperationKind.SAMPLE, topk_sample()) == {
        "type": "sample",
        "sequences": [
            {"stop_reason": "stop", "tokens": [4, 5], "logprobs": [-0.5, -1.0]},
            {"stop_reason": "length", "tokens": [6], "logprobs": [-2.0]},
        ],
        "prompt_logprobs": [None, -0.25],
        "topk_prompt_logprobs": [None, [[7, -1.0], [8, -2.0]]],
    }


@pytest.mark.parametrize(
    ("kind", "result", "expected"),
    [
        (
            OperationKind.CREATE_MODEL,
            ModelResult("m"),
            {"type": "create_model", "model_id": "m"},
        ),
        (
            OperationKind.LOAD_WEIGHTS,
            ModelResult("m", "tinker://p"),
            {"type": "load_weights", "model_id": "m", "path": "tinker://p"},
        ),
        (OperationKind.OPTIM_STEP, OptimStepResult({}), {"metrics": None}),
        (OperationKind.OPTIM_STEP, OptimStepResult({"a": 1.0}), {"metrics": {"a": 1.0}}),
        (
            OperationKind.SAVE_WEIGHTS,
            SaveWeightsResult(path="tinker://p", num_bytes=3),
            {"type": "save_weights", "path": "tinker://p"},
        ),
        (
            OperationKind.SAVE_WEIGHTS_FOR_SAMPLER,
            SaveWeightsResult(sampling_session_id="s"),
            {"type": "save_weights_for_sampler", "sampling_session_id": "s"},
        ),
        (
            OperationKind.SAVE_WEIGHTS_EXTERNAL,
            SaveWeightsResult(path="tinker://p", num_bytes=3),
            {"type": "save_weights_external", "path": "tinker://p", "size_bytes": 3},
        ),
    ],
)
def test_other_results_are_json_whatever_the_poll_accepts(
    kind: OperationKind, result: Result, expected: dict[str, Any]
) -> None:
    answer = encoded(kind, result, PROTOBUF)

    assert answer.media_type == "application/json"
    assert json.loads(answer.content) == expected
