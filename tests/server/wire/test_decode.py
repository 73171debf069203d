"""Bodies made by the SDK's own request builder, read back by the server."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from cyclora_core.errors import PayloadTooLarge, UserError
from cyclora_core.operations import OperationKind, PassBody
from cyclora_core.samples import Cells, PromptTargets
from cyclora_server.problems import InvalidBody
from cyclora_server.wire import bodies, decode, schema
from cyclora_server.wire.bodies import ModelInput
from cyclora_server.wire.reading import parse
from cyclora_server.wire.tensors import Budget
from server.doubles.builders import MODEL


def sdk_bytes(
    data: list[types.Datum],
    loss_fn: Any = "cross_entropy",
    config: dict[str, float | str] | None = None,
    forward_only: bool = False,
) -> bytes:
    request = ForwardBackwardRequest(
        forward_backward_input=ForwardBackwardInput(
            data=data, loss_fn=loss_fn, loss_fn_config=config
        ),
        model_id=MODEL,
        seq_id=3,
    )
    message = forward_backward_request_to_proto(request)
    message.forward_only = forward_only
    return message.SerializeToString()


def sdk_datum(tokens: list[int], **inputs: Any) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def decoded(raw: bytes, max_bytes: int = 10_000) -> PassBody:
    return decode.pass_from_proto(raw).decode(Budget(max_bytes))


def decoded_json(value: dict[str, Any], max_bytes: int = 10_000) -> PassBody:
    raw = json.dumps({"model_id": MODEL, "seq_id": 3, "forward_backward_input": value}).encode()
    sent = decode.pass_from_json(raw, "forward_backward_input", OperationKind.FORWARD_BACKWARD)
    return sent.decode(Budget(max_bytes))


def json_datum(tokens: list[Any] | None = None, **inputs: Any) -> dict[str, Any]:
    chunks = [{"type": "encoded_text", "tokens": tokens or [1, 2]}]
    return {"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs}


def json_pass(**inputs: Any) -> dict[str, Any]:
    return {"loss_fn": "cross_entropy", "data": [json_datum(**inputs)]}


def proto_pass(tensor: dict[str, Any]) -> bytes:
    message = schema.ForwardBackwardRequest(model_id=MODEL, seq_id=1, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.asarray([1, 2], np.int32).tobytes()
    csr = tensor.pop("sparse_csr", None)
    sent = datum.loss_fn_inputs["weights"]
    for name, value in tensor.items():
        if name == "shape":
            sent.shape.extend(value)
        else:
            setattr(sent, name, value)
    for name, value in (csr or {}).items():
        setattr(sent.sparse_csr, name, value)
    return message.SerializeToString()


def csr(values: list[float], crow: list[int], col: list[int]) -> dict[str, bytes]:
    return {
        "values": np.asarray(values, np.float32).tobytes(),
        "crow_indices": np.asarray(crow, np.int64).tobytes(),
        "col_indices": np.asarray(col, np.int64).tobytes(),
    }


def test_a_pass_of_the_sdk_arrives_with_its_tokens_and_inputs() -> None:
    datum = sdk_datum([1, 2, 3], target_tokens=[2, 3, 4], weights=[0.0, 1.0, -0.5])

    body = decoded(sdk_bytes([datum]))

    assert body.data[0].tokens.tolist() == [1, 2, 3]
    assert body.data[0].loss_fn_inputs["target_tokens"].tolist() == [2, 3, 4]
    assert body.data[0].loss_fn_inputs["target_tokens"].dtype == np.int64
    assert body.data[0].loss_fn_inputs["weights"].tolist() == [0.0, 1.0, -0.5]
    assert body.data[0].loss_fn_inputs["weights"].dtype == np.float32


def test_the_number_of_a_pass_is_read_before_its_data() -> None:
    sent = decode.pass_from_proto(sdk_bytes([], forward_only=False))

    assert (sent.model_id, sent.seq_id) == (MODEL, 3)
    assert sent.kind is OperationKind.FORWARD_BACKWARD


def test_a_protobuf_field_of_a_later_sdk_is_ignored() -> None:
    raw = sdk_bytes([], forward_only=False)
    number_127 = b"\xf8\x07\x01"

    assert decode.pass_from_proto(raw + number_127).seq_id == decode.pass_from_proto(raw).seq_id
    assert decoded(raw + number_127) == decoded(raw)


def test_forward_only_makes_a_forward() -> None:
    sent = decode.pass_from_proto(sdk_bytes([], forward_only=True))

    assert sent.kind is OperationKind.FORWARD


def test_config_of_the_sdk_arrives_as_numbers() -> None:
    config: dict[str, float | str] = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}

    body = decoded(sdk_bytes([], "ppo", config))

    assert body.loss_fn_config == config


def test_config_in_the_legacy_map_alone_is_read() -> None:
    message = schema.ForwardBackwardRequest(model_id=MODEL, seq_id=1, loss_fn="dro")
    message.loss_fn_config["beta"] = 0.05

    assert decoded(message.SerializeToString()).loss_fn_config == {"beta": 0.05}


def test_text_in_the_config_is_refused() -> None:
    with pytest.raises(UserError, match="loss_fn_config\\['beta'\\] is 'x'; expected a number"):
        decoded(sdk_bytes([], "dro", {"beta": "x"}))


def test_a_custom_loss_comes_with_the_id_it_was_given() -> None:
    body = decoded(sdk_bytes([], "custom", {"loss_id": "x"}))

    assert (body.loss_id, body.loss_fn_config) == ("x", {})


@pytest.mark.parametrize("config", [None, {"loss_id": 3.0}])
def test_a_custom_loss_without_an_id_is_refused(config: dict[str, float | str] | None) -> None:
    with pytest.raises(UserError, match=r"needs loss_fn_config\['loss_id'\], a text"):
        decoded(sdk_bytes([], "custom", config))


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_beyond_every_float_is_refused(value: int) -> None:
    """JSON has integers of any length."""
    with pytest.raises(UserError, match="loss_fn_config\\['beta'\\] is too large"):
        decoded_json({"loss_fn": "dro", "data": [], "loss_fn_config": {"beta": value}})


def test_chunks_are_laid_end_to_end() -> None:
    model_input = types.ModelInput(
        chunks=[types.EncodedTextChunk(tokens=[1, 2]), types.EncodedTextChunk(tokens=[3])]
    )
    datum = types.Datum(model_input=model_input, loss_fn_inputs={})

    assert decoded(sdk_bytes([datum])).data[0].tokens.tolist() == [1, 2, 3]


def test_a_sparse_matrix_of_the_sdk_is_made_dense() -> None:
    dense = np.asarray([[0, 5], [0, 0], [7, 0]], np.int64)
    tensor = types.TensorData(
        data=[5, 7],
        dtype="int64",
        shape=[3, 2],
        sparse_crow_indices=[0, 1, 1, 2],
        sparse_col_indices=[1, 0],
    )

    body = decoded(sdk_bytes([sdk_datum([1, 2, 3], target_tokens=tensor)]))

    assert body.data[0].loss_fn_inputs["target_tokens"].tolist() == dense.tolist()


def test_a_sparse_matrix_without_values_is_all_zeros() -> None:
    raw = proto_pass({"dtype": 1, "shape": [2, 2], "sparse_csr": csr([], [0, 0, 0], [])})

    assert decoded(raw).data[0].loss_fn_inputs["weights"].tolist() == [[0, 0], [0, 0]]


def test_a_dense_matrix_keeps_its_shape() -> None:
    datum = sdk_datum([1, 2], weights=np.asarray([[1, 2], [3, 4]], np.float32))

    weights = decoded(sdk_bytes([datum])).data[0].loss_fn_inputs["weights"]

    assert weights.tolist() == [[1, 2], [3, 4]]


def test_a_tensor_without_a_shape_is_one_dimensional() -> None:
    raw = proto_pass({"dtype": 1, "dense": np.zeros(3, np.float32).tobytes()})

    assert decoded(raw).data[0].loss_fn_inputs["weights"].shape == (3,)


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"dtype": 3, "dense": b"1234"}, "has dtype 3; expected FLOAT32"),
        ({"dtype": 1, "dense": b"123"}, "3 bytes, which is no multiple of 4"),
        ({"dtype": 1, "dense": b"1234", "shape": [2]}, "1 elements, which do not fill"),
        ({"dtype": 1, "dense": b"1234", "shape": [1, 1, 1]}, r"expected \[N\] or \[N, K\]"),
        ({"dtype": 1, "dense": b"", "shape": [-1, 0]}, r"expected \[N\] or \[N, K\]"),
        ({"dtype": 1, "sparse_csr": csr([], [0], []), "shape": [4]}, "sparse tensors need"),
        ({"dtype": 1, "sparse_csr": csr([], [0], []), "shape": []}, "sparse tensors need"),
        ({"dtype": 1, "sparse_csr": csr([], [0], []), "shape": [1, 1]}, "not a valid sparse"),
        ({"dtype": 1, "sparse_csr": csr([1], [0, 2], [0]), "shape": [1, 1]}, "not a valid sparse"),
        ({"dtype": 1, "sparse_csr": csr([1], [1, 1], [0]), "shape": [1, 1]}, "not a valid sparse"),
        ({"dtype": 1, "sparse_csr": csr([1], [0, 1], []), "shape": [1, 1]}, "not a valid sparse"),
        (
            {"dtype": 1, "sparse_csr": csr([1], [0, 2, 1], [0]), "shape": [2, 1]},
            "not a valid sparse",
        ),
        ({"dtype": 1, "sparse_csr": csr([1], [0, 1], [1]), "shape": [1, 1]}, "column index"),
        ({"dtype": 1, "sparse_csr": csr([1], [0, 1], [-1]), "shape": [1, 1]}, "column index"),
    ],
)
def test_a_malformed_tensor_is_refused(tensor: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        decoded(proto_pass(dict(tensor)))


def test_a_sparse_tensor_cannot_take_more_than_the_budget() -> None:
    """A few bytes can declare a matrix of any size; it must be refused before it is allocated."""
    raw = proto_pass({"dtype": 1, "shape": [2, 2**40], "sparse_csr": csr([], [0, 0, 0], [])})

    with pytest.raises(PayloadTooLarge, match="may take 10000 bytes"):
        decoded(raw)


def test_the_budget_is_shared_by_all_tensors_of_a_request() -> None:
    datum = sdk_datum([1], weights=[1.0] * 20)

    with pytest.raises(PayloadTooLarge, match="may take 100 bytes"):
        decoded(sdk_bytes([datum, datum]), max_bytes=100)


def test_an_image_is_refused() -> None:
    image = types.ImageChunk(data=b"x", format="png")
    datum = types.Datum(model_input=types.ModelInput(chunks=[image]), loss_fn_inputs={})

    with pytest.raises(UserError, match=r"data\[0\] has a chunk of type 'image'"):
        decoded(sdk_bytes([datum]))


def test_token_bytes_that_are_no_whole_tokens_are_refused() -> None:
    message = schema.ForwardBackwardRequest(model_id=MODEL, seq_id=1, loss_fn="cross_entropy")
    message.data.add().model_input.add().encoded_text.tokens = b"123"

    with pytest.raises(UserError, match="tokens of 3 bytes"):
        decoded(message.SerializeToString())


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff",
        b"",
        schema.ForwardBackwardRequest(model_id=MODEL).SerializeToString(),
        schema.ForwardBackwardRequest(model_id=MODEL, seq_id=-1).SerializeToString(),
    ],
)
def test_a_protobuf_body_without_a_number_cannot_become_a_future(raw: bytes) -> None:
    with pytest.raises(InvalidBody):
        decode.pass_from_proto(raw)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b'{"model_id": "m"}'])
def test_a_json_body_without_a_number_cannot_become_a_future(raw: bytes) -> None:
    with pytest.raises(InvalidBody):
        decode.pass_from_json(raw, "forward_input", OperationKind.FORWARD)


def test_json_and_protobuf_bodies_decode_alike() -> None:
    value = json_pass(
        target_tokens={"data": [2, 3], "dtype": "int64", "shape": [2]},
        weights={"data": [1, 0.5], "dtype": "float32"},
    )
    datum = sdk_datum([1, 2], target_tokens=[2, 3], weights=[1.0, 0.5])

    from_json, from_proto = decoded_json(value), decoded(sdk_bytes([datum]))

    assert str(from_json.to_payload()) == str(from_proto.to_payload())


def test_a_json_chunk_without_a_type_is_known_by_its_tokens() -> None:
    value = {"loss_fn": "cross_entropy", "data": [json_datum()]}
    del value["data"][0]["model_input"]["chunks"][0]["type"]  # type: ignore[index]

    assert decoded_json(value).data[0].tokens.tolist() == [1, 2]


def test_a_sparse_json_tensor_is_made_dense() -> None:
    tensor = {
        "data": [5],
        "dtype": "int64",
        "shape": [2, 2],
        "sparse_crow_indices": [0, 0, 1],
        "sparse_col_indices": [1],
    }

    body = decoded_json(json_pass(target_tokens=tensor))

    assert body.data[0].loss_fn_inputs["target_tokens"].tolist() == [[0, 0], [0, 5]]


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"data": [1.5], "dtype": "int64"}, "not a flat list of int64"),
        ({"data": ["x"], "dtype": "float32"}, "not a flat list of float32"),
        ({"data": [None], "dtype": "float32"}, "not a flat list of float32"),
        ({"data": [[1], [2]], "dtype": "float32"}, "not a flat list of float32"),
        ({"data": [[1], [2, 3]], "dtype": "float32"}, "not a flat list of numbers"),
        ({"data": [2**63], "dtype": "int64"}, "outside the range of int64"),
        ({"data": [2**70], "dtype": "int64"}, "not a flat list of int64"),
        ({"data": [1], "dtype": "bfloat16"}, "has dtype 'bfloat16'"),
    ],
)
def test_a_malformed_json_tensor_is_refused(tensor: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        decoded_json(json_pass(weights=tensor))


def test_missing_json_data_is_a_fault_of_the_body_and_not_of_its_number() -> None:
    raw = json.dumps({"model_id": MODEL, "seq_id": 1, "forward_input": None}).encode()
    sent = decode.pass_from_json(raw, "forward_input", OperationKind.FORWARD)

    with pytest.raises(InvalidBody):
        sent.decode(Budget(1000))


@pytest.mark.parametrize("tokens", [[-1], [2**31]])
def test_a_json_token_beyond_int32_is_refused_and_not_wrapped(tokens: list[int]) -> None:
    model_input = ModelInput(chunks=[{"type": "encoded_text", "tokens": tokens}])

    with pytest.raises(UserError, match="token id outside"):
        decode.prompt_tokens(model_input)


@pytest.mark.parametrize("index", [0, 1])
def test_an_empty_chunk_of_a_prompt_is_named(index: int) -> None:
    chunks: list[dict[str, Any]] = [{"type": "encoded_text", "tokens": [1]}]
    chunks.insert(index, {"type": "encoded_text", "tokens": []})

    with pytest.raises(UserError, match=f"Chunk {index} has empty tokens list"):
        decode.prompt_tokens(ModelInput(chunks=chunks))


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        ({"type": "image", "data": "x", "format": "png"}, "image"),
        ({"location": "asset://x", "format": "png"}, "image_asset_pointer"),
        ({"dmel": "x"}, "dmel"),
        ({"data": "x", "format": "jpeg"}, "image"),
    ],
)
def test_a_chunk_that_is_no_text_is_refused_with_what_to_send(
    chunk: dict[str, Any], kind: str
) -> None:
    with pytest.raises(UserError, match=f"type '{kind}'; send encoded_text chunks only"):
        decode.prompt_tokens(ModelInput(chunks=[chunk]))


def sent_targets(**tensor: Any) -> PromptTargets:
    value = {"dtype": "int64", **tensor}
    return decode.prompt_targets(parse(bodies.TensorData, value), 1000)


def test_dense_targets_keep_their_cells() -> None:
    targets = sent_targets(data=[1, -1, 3, 4], shape=[2, 2])

    assert targets.cells == Cells(2, 2)
    assert targets.tokens.tolist() == [1, -1, 3, 4]


def test_sparse_targets_of_the_sdk_stay_sparse_however_wide() -> None:
    table = torch.full((3, 1000), -1, dtype=torch.int64)
    table[1, 999], table[2, 0] = 7, 8
    sdk = types.TensorData.from_torch_sparse(table, pad_value=-1)

    targets = sent_targets(
        data=np.asarray(sdk.data).tolist(),
        shape=sdk.shape,
        sparse_crow_indices=sdk.sparse_crow_indices,
        sparse_col_indices=sdk.sparse_col_indices,
    )

    assert (targets.cells.num_rows, targets.cells.num_columns) == (3, 1000)
    assert targets.cells.rows().tolist() == [1, 2]
    assert targets.tokens.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"data": [1.5], "dtype": "float32", "shape": [1, 1]}, "dtype 'float32'; expected int64"),
        ({"data": [1], "shape": [1]}, r"shape \[1\]; expected \[N, K\]"),
        ({"data": [1, 2], "shape": [1, 1]}, "do not fill its shape"),
        ({"data": [1] * 200, "shape": [200, 1]}, "1000 bytes"),
        (
            {
                "data": [1],
                "shape": [1, 2],
                "sparse_crow_indices": [0, 1],
                "sparse_col_indices": [2],
            },
            "column index outside 0..1",
        ),
        (
            {
                "data": [1],
                "shape": [2, 2],
                "sparse_crow_indices": [0, 1],
                "sparse_col_indices": [0],
            },
            "not a valid sparse tensor",
        ),
        (
            {
                "data": [1],
                "shape": [1, 2**40],
                "sparse_crow_indices": [0, 1],
                "sparse_col_indices": [0],
            },
            "1099511627776 columns",
        ),
    ],
)
def test_targets_that_make_no_table_are_refused(tensor: dict[str, Any], complaint: str) -> None:
    with pytest.raises((UserError, PayloadTooLarge), match=complaint):
        sent_targets(**tensor)
