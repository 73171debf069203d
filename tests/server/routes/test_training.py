from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest
import zstandard
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest
from tinker.types.get_info_response import GetInfoResponse
from tinker.types.shared.untyped_api_future import UntypedAPIFuture

from cyclora_core import blocks, ids, payload
from cyclora_core.errors import ErrorCategory
from cyclora_core.operations import (
    BODY_TYPES,
    CreateModelBody,
    DimuonStepBody,
    OperationKind,
    OptimStepBody,
    PassBody,
)
from cyclora_core.optimizers import OptimizerType
from cyclora_core.records import Submission
from cyclora_server.submission import derived_seed
from cyclora_server.wire import schema
from server.doubles.builders import BASE, MODEL, SESSION, STRANGER_KEY, TENANT, model_record
from server.doubles.store import StoreDouble

PROTOBUF = {"Content-Type": "application/x-protobuf"}
CREATE = {
    "session_id": SESSION,
    "model_seq_id": 1,
    "base_model": BASE.name,
    "lora_config": {"rank": 8},
    "user_metadata": {"renderer_name": "plain", "n": 1},
    "optimizer_config": {"type": "adamw"},
    "type": "create_model",
}
CREATED = ids.request_id(ids.model_id(SESSION, 1), 0)
STEP = {"model_id": MODEL, "seq_id": 2, "adam_params": {"learning_rate": 0.5}}


def pass_bytes(*tokens: int, seq_id: int = 1, forward_only: bool = False) -> bytes:
    inputs: dict[str, Any] = {"target_tokens": list(tokens), "weights": [1.0] * len(tokens)}
    datum = types.Datum(model_input=types.ModelInput.from_ints(list(tokens)), loss_fn_inputs=inputs)
    body = ForwardBackwardInput(data=[datum, datum], loss_fn="cross_entropy")
    request = ForwardBackwardRequest(forward_backward_input=body, model_id=MODEL, seq_id=seq_id)
    message = forward_backward_request_to_proto(request)
    message.forward_only = forward_only
    return message.SerializeToString()


async def post_pass(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await client.post(
        "/api/v1/forward_backward", content=content, headers=PROTOBUF | (headers or {})
    )


def body_of(submission: Submission, body_type: Any) -> Any:
    return body_type.from_payload(payload.decode(submission.body))


async def test_create_model_is_seq_id_0_of_the_id_that_the_sdk_computes(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    answer = await client.post("/api/v1/create_model", json=CREATE)

    assert UntypedAPIFuture.model_validate(answer.json()).request_id == CREATED
    submission = store.submitted(CREATED)
    assert submission.kind is OperationKind.CREATE_MODEL
    assert submission.seq_id == 0
    assert submission.tenant_id == TENANT
    assert submission.new_model is not None
    assert submission.new_model.user_metadata == {"renderer_name": "plain", "n": "1"}
    body: CreateModelBody = body_of(submission, CreateModelBody)
    assert body.lora.lora_rank == 8
    assert body.lora.seed == derived_seed(CREATED)


async def test_create_model_sent_again_finds_the_same_promise(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/api/v1/create_model", json=CREATE) for _ in range(2)]

    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    ("changes", "status", "complaint"),
    [
        ({"base_model": "org/other"}, 404, "served are: org/tiny"),
        ({"lora_config": {"rank": 65}}, 400, "rank is 65"),
        ({"optimizer_config": {"type": "sgd"}}, 400, "'sgd' is not supported"),
        (
            {"optimizer_config": {"type": "dimuon", "version": 2}},
            400,
            "version of optimizer_config",
        ),
        ({"session_id": "nope"}, 404, "session 'nope' does not exist"),
        ({"model_seq_id": -1}, 422, "model_seq_id"),
        ({"model_seq_id": None}, 422, "model_seq_id"),
    ],
)
async def test_a_refused_model_leaves_no_training_run(
    client: httpx.AsyncClient,
    store: StoreDouble,
    changes: dict[str, Any],
    status: int,
    complaint: str,
) -> None:
    answer = await client.post("/api/v1/create_model", json=CREATE | changes)

    assert answer.status_code == status
    assert complaint in answer.json()["detail"]
    assert list(store.models.records) == [MODEL]


async def test_a_finished_session_creates_no_models(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await store.sessions.finish(SESSION, "success")

    assert (await client.post("/api/v1/create_model", json=CREATE)).status_code == 410


async def test_the_sdk_understands_get_info(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/get_info", json={"model_id": MODEL})

    info = GetInfoResponse.model_validate(answer.json())
    assert info.model_id == MODEL
    assert info.lora_rank == 8
    assert info.model_data.model_name == BASE.name
    assert info.model_data.tokenizer_id == BASE.tokenizer_path


async def test_a_pass_of_the_sdk_is_submitted_with_its_sizes(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    answer = await post_pass(client, pass_bytes(1, 2, 3))

    assert answer.json() == {"request_id": f"{MODEL}:1", "model_id": MODEL}
    submission = store.submitted(f"{MODEL}:1")
    assert submission.kind is OperationKind.FORWARD_BACKWARD
    assert submission.num_tokens == 6
    assert submission.datum_tokens == [3, 3]
    assert submission.base_model == BASE.name
    assert body_of(submission, PassBody).data[0].tokens.tolist() == [1, 2, 3]


async def test_a_pass_is_submitted_with_what_its_data_share(
    client: httpx.AsyncClient, store: StoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two data of ``pass_bytes`` are alike."""
    monkeypatch.setattr(blocks, "_MIN_PREFIX", 8)

    await post_pass(client, pass_bytes(*range(20)))

    assert store.submitted(f"{MODEL}:1").shared_tokens == [0, 16]


async def test_a_compressed_pass_is_the_same_request(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    plain = await post_pass(client, pass_bytes(1, 2))
    packed = zstandard.compress(pass_bytes(1, 2))

    again = await post_pass(client, packed, {"Content-Encoding": "zstd"})

    assert again.json() == plain.json()
    assert len(store.operations.submissions) == 1


async def test_forward_only_submits_a_forward(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await post_pass(client, pass_bytes(1, forward_only=True))

    assert store.submitted(f"{MODEL}:1").kind is OperationKind.FORWARD


@pytest.mark.parametrize(
    ("path", "field", "kind"),
    [
        ("forward_backward", "forward_backward_input", OperationKind.FORWARD_BACKWARD),
        ("forward", "forward_input", OperationKind.FORWARD),
    ],
)
async def test_older_sdks_send_passes_as_json(
    client: httpx.AsyncClient, store: StoreDouble, path: str, field: str, kind: OperationKind
) -> None:
    datum = {
        "model_input": {"chunks": [{"tokens": [1, 2]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": [2, 3], "dtype": "int64"},
            "weights": {"data": [0, 1], "dtype": "float32"},
        },
    }
    value = {"model_id": MODEL, "seq_id": 1, field: {"data": [datum], "loss_fn": "cross_entropy"}}

    answer = await client.post(f"/api/v1/{path}", json=value)

    assert answer.status_code == 200
    assert store.submitted(f"{MODEL}:1").kind is kind
    assert store.submitted(f"{MODEL}:1").error is None


async def test_a_refused_pass_uses_up_its_seq_id(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """A 4xx would leave a hole that every later request of the model waits behind."""
    answer = await post_pass(client, pass_bytes(1, 100))

    assert answer.status_code == 200
    submission = store.submitted(f"{MODEL}:1")
    assert submission.error is not None
    assert submission.error.category is ErrorCategory.USER
    assert "token id 100; expected 0..99" in submission.error.message
    assert submission.seq_id == 1


async def test_a_refused_pass_sent_again_finds_its_failed_future(
    client: httpx.AsyncClient,
) -> None:
    answers = [await post_pass(client, pass_bytes(100)) for _ in range(2)]

    assert [each.status_code for each in answers] == [200, 200]


async def test_tensors_beyond_the_bound_use_up_their_seq_id(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    message = schema.ForwardBackwardRequest(model_id=MODEL, seq_id=1, loss_fn="cross_entropy")
    tensor = message.data.add().loss_fn_inputs["weights"]
    tensor.dtype = schema.DTYPE_FLOAT32
    tensor.shape.extend([1, 2**40])
    tensor.sparse_csr.crow_indices = bytes(16)

    answer = await post_pass(client, message.SerializeToString())

    assert answer.status_code == 200
    error = store.submitted(f"{MODEL}:1").error
    assert error is not None
    assert "8192 bytes" in error.message


@pytest.mark.parametrize("content", [b"\xff", b""])
async def test_a_pass_without_a_readable_number_is_refused_at_once(
    client: httpx.AsyncClient, store: StoreDouble, content: bytes
) -> None:
    assert (await post_pass(client, content)).status_code == 422
    assert not store.operations.submissions


async def test_the_same_seq_id_with_another_body_is_refused_clearly(
    client: httpx.AsyncClient,
) -> None:
    await post_pass(client, pass_bytes(1))

    answer = await post_pass(client, pass_bytes(2))

    assert answer.status_code == 400
    assert "seq_id 1" in answer.json()["detail"]
    assert "was used before by a request with another body" in answer.json()["detail"]


async def test_a_seq_id_whose_future_is_no_longer_kept_is_gone(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.operations.expired.add(f"{MODEL}:1")

    assert (await post_pass(client, pass_bytes(1))).status_code == 410


async def test_an_optimizer_step_is_submitted(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    answer = await client.post("/api/v1/optim_step", json=STEP)

    assert answer.json() == {"request_id": f"{MODEL}:2", "model_id": MODEL}
    body = body_of(store.submitted(f"{MODEL}:2"), OptimStepBody)
    assert body == OptimStepBody(learning_rate=0.5)


async def test_the_optimizer_is_part_of_the_model(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    config = {"type": "dimuon", "version": 1}

    await client.post("/api/v1/create_model", json=CREATE | {"optimizer_config": config})

    new_model = store.submitted(CREATED).new_model
    assert new_model is not None
    assert new_model.optimizer_type is OptimizerType.DIMUON
    again = await client.post("/api/v1/create_model", json=CREATE)
    assert "was used before by a request with another body" in again.json()["detail"]


async def test_a_step_is_one_of_the_models_optimizer(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.models.records[MODEL] = model_record(optimizer_type=OptimizerType.DIMUON)
    params = {"type": "dimuon", "learning_rate": 0.5, "beta1": 0.8, "grad_clip_norm": -1}
    seq_2 = {"model_id": MODEL, "seq_id": 2, "optimizer_params": params}

    await client.post("/api/v1/optim_step", json=seq_2)
    await client.post("/api/v1/optim_step", json=STEP | {"seq_id": 3})

    body = body_of(store.submitted(f"{MODEL}:2"), BODY_TYPES[OperationKind.OPTIM_STEP])
    assert body == DimuonStepBody(0.5, beta1=0.8, grad_clip_norm=0.0)
    error = store.submitted(f"{MODEL}:3").error
    assert error is not None
    assert "created with dimuon" in error.message


@pytest.mark.parametrize("optimizer_type", OptimizerType)
async def test_the_sdk_learns_the_optimizer_from_get_info(
    client: httpx.AsyncClient, store: StoreDouble, optimizer_type: OptimizerType
) -> None:
    store.models.records[MODEL] = model_record(optimizer_type=optimizer_type)

    answer = await client.post("/api/v1/get_info", json={"model_id": MODEL})

    expected = {"adamw": types.AdamOptimizerConfig(), "dimuon": types.DimuonOptimizerConfig()}
    info = GetInfoResponse.model_validate(answer.json())
    assert info.optimizer_config.model_dump() == expected[optimizer_type].model_dump()


async def test_its_number_and_not_a_header_tells_a_request_from_its_retry(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """The SDK's outer retries carry an ``X-Idempotency-Key`` of their own."""
    answers = [
        await client.post(
            "/api/v1/optim_step",
            json=STEP | {"seq_id": seq_id},
            headers={"X-Idempotency-Key": idempotency_key},
        )
        for seq_id, idempotency_key in ((2, "a"), (3, "a"), (2, "b"))
    ]

    found = [each.json()["request_id"] for each in answers]
    assert found == [f"{MODEL}:2", f"{MODEL}:3", f"{MODEL}:2"]
    assert list(store.operations.submissions) == found[:2]


@pytest.mark.parametrize(
    "changes",
    [
        {"adam_params": {"learning_rate": -1}},
        {"adam_params": {"learning_rate": "fast"}},
        {"adam_params": [1]},
        {"adam_params": None, "optimizer_params": {"type": "dimuon", "learning_rate": 0.1}},
    ],
)
async def test_a_refused_optimizer_step_uses_up_its_seq_id(
    client: httpx.AsyncClient, store: StoreDouble, changes: dict[str, Any]
) -> None:
    answer = await client.post("/api/v1/optim_step", json=STEP | changes)

    assert answer.status_code == 200
    assert store.submitted(f"{MODEL}:2").error is not None


async def test_unload_model_takes_the_next_number_when_the_client_sends_none(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await client.post("/api/v1/unload_model", json={"model_id": MODEL})

    assert store.submitted(f"{MODEL}:1").kind is OperationKind.UNLOAD_MODEL


@pytest.mark.parametrize("model_id", [MODEL, "missing", ids.model_id(SESSION, 9)])
@pytest.mark.parametrize("path", ["optim_step", "get_info", "unload_model", "forward_backward"])
async def test_a_strangers_model_looks_like_a_missing_one(
    client: httpx.AsyncClient, store: StoreDouble, path: str, model_id: str
) -> None:
    answer = await client.post(
        f"/api/v1/{path}", json=STEP | {"model_id": model_id}, headers={"X-API-Key": STRANGER_KEY}
    )

    assert answer.status_code == 404
    assert answer.json() == {"detail": f"model {model_id!r} does not exist"}
    assert not store.operations.submissions


async def test_a_base_model_that_no_worker_described_yet_is_worth_another_try(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.base_models.records.clear()

    assert (await client.post("/api/v1/optim_step", json=STEP)).status_code == 503


async def test_a_model_that_has_ended_takes_no_more_requests_but_answers_retries(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    before = await client.post("/api/v1/optim_step", json=STEP)
    store.models.records[MODEL] = model_record(is_ended=True)

    retry = await client.post("/api/v1/optim_step", json=STEP)
    late = await client.post("/api/v1/optim_step", json=STEP | {"seq_id": 3})

    assert retry.json() == before.json()
    assert late.status_code == 410
    assert "unloaded" in late.json()["detail"]


async def test_unloading_a_model_twice_gives_the_promise_of_the_first_time(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    first = await client.post("/api/v1/unload_model", json={"model_id": MODEL})
    store.models.records[MODEL] = model_record(is_ended=True, applied_seq_id=1, logged_seq_id=1)

    again = await client.post("/api/v1/unload_model", json={"model_id": MODEL})

    assert again.json() == first.json()


async def test_unloading_goes_behind_a_request_that_took_its_number(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await client.post("/api/v1/optim_step", json=STEP | {"seq_id": 1})
    real = store.models.get
    looks = iter((0, 0, 1))

    async def get(model_id: str) -> Any:
        record = await real(model_id)
        return dataclasses.replace(record, logged_seq_id=next(looks)) if record else None

    store.models.get = get  # type: ignore[method-assign]

    answer = await client.post("/api/v1/unload_model", json={"model_id": MODEL})

    assert answer.json()["request_id"] == f"{MODEL}:2"
