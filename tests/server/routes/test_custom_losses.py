from __future__ import annotations

from typing import Any

import httpx
import pytest
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.create_custom_loss_response import CreateCustomLossResponse
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest
from tinker.types.shared.untyped_api_future import UntypedAPIFuture

from core.losses import call, custom_loss, method, ref
from cyclora_core import ids, payload
from cyclora_core.custom_loss import MAX_UPLOAD_BYTES, CustomLoss
from cyclora_core.operations import OperationKind, PassBody
from cyclora_core.store.custom_losses import CreateLossOutcome
from server.doubles.builders import MODEL, SESSION, STRANGER_KEY, model_record
from server.doubles.store import StoreDouble

LOSS = custom_loss(method("total", "sum", ref("logprobs")), scale=0)
LOSS_ID = ids.loss_id(SESSION, 0)


def upload(loss: CustomLoss = LOSS, number: int = 0, **changes: Any) -> dict[str, Any]:
    """The request as the SDK sends it."""
    value = loss.to_json()
    return {
        "session_id": SESSION,
        "custom_loss_seq_id": number,
        "name": value["name"],
        "inputs": value["inputs"],
        "graph": {"format": 1, "nodes": value["nodes"]},
        "type": "create_custom_loss",
    } | changes


async def post(client: httpx.AsyncClient, body: Any, **options: Any) -> httpx.Response:
    return await client.post("/api/v1/create_custom_loss", json=body, **options)


def pass_bytes(loss_id: str, seq_id: int = 1, **inputs: Any) -> bytes:
    given: dict[str, Any] = {
        "target_tokens": [1, 2],
        "scale": types.TensorData(data=[0.5], dtype="float32", shape=[]),
    }
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2]), loss_fn_inputs=given | inputs
    )
    body = ForwardBackwardInput(data=[datum], loss_fn="custom", loss_fn_config={"loss_id": loss_id})
    request = ForwardBackwardRequest(forward_backward_input=body, model_id=MODEL, seq_id=seq_id)
    return forward_backward_request_to_proto(request).SerializeToString()


async def post_pass(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/x-protobuf"}
    return await client.post("/api/v1/forward_backward", content=content, headers=headers)


async def test_an_upload_is_a_promise_of_the_id_that_passes_name_it_by(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    answer = await post(client, upload())

    future = UntypedAPIFuture.model_validate(answer.json())
    result = await client.post("/api/v1/retrieve_future", json={"request_id": future.request_id})
    assert CreateCustomLossResponse.model_validate(result.json()).loss_id == LOSS_ID
    assert store.custom_losses.records == {LOSS_ID: LOSS}


async def test_a_retry_finds_the_same_promise(client: httpx.AsyncClient) -> None:
    answers = [await post(client, upload()) for _ in range(2)]

    assert answers[0].json() == answers[1].json()


async def test_another_loss_under_a_used_number_is_refused(client: httpx.AsyncClient) -> None:
    await post(client, upload())

    answer = await post(client, upload(name="other"))

    assert answer.status_code == 400
    assert "was used before for another loss" in answer.json()["detail"]


async def test_a_refused_graph_is_answered_at_once_and_not_kept(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """No other request waits behind its number, and the SDK raises at once."""
    answer = await post(client, upload(custom_loss(call("bad", "torch.load", "x"))))

    assert answer.status_code == 400
    assert "node 'bad' ('torch.load'): it is not one of the operations" in answer.json()["detail"]
    assert not store.custom_losses.records


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"custom_loss_seq_id": -1}, 422),
        ({"custom_loss_seq_id": "x"}, 422),
        ({"graph": {"format": 2, "nodes": []}}, 422),
        ({"graph": {"format": 1}}, 422),
        ({"graph": {"format": 1, "nodes": [1]}}, 422),
        ({"graph": {"format": 1, "nodes": [{"op": "output", "name": "o", "target": 3}]}}, 422),
        ({"inputs": [{"name": "logprobs", "rank": "one"}]}, 422),
        ({"inputs": []}, 400),
        ({"name": "n" * 1000}, 400),
        ({"session_id": "nope"}, 404),
    ],
)
async def test_a_malformed_upload_is_refused(
    client: httpx.AsyncClient, changes: dict[str, Any], status: int
) -> None:
    assert (await post(client, upload(**changes))).status_code == status


async def test_an_upload_beyond_the_bound_is_not_even_parsed(
    client: httpx.AsyncClient, app: Any
) -> None:
    services = app.state.services
    roomy = services.settings.model_copy(update={"max_body_bytes": 2 * MAX_UPLOAD_BYTES})
    object.__setattr__(services, "settings", roomy)

    answer = await client.post("/api/v1/create_custom_loss", content=b"[" * (MAX_UPLOAD_BYTES + 1))

    assert answer.status_code == 413


async def test_json_nested_without_end_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/create_custom_loss", content=b'{"a":' * 1500)

    assert answer.status_code == 422


async def test_a_strangers_session_takes_no_loss(client: httpx.AsyncClient) -> None:
    answer = await post(client, upload(), headers={"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404


async def test_a_finished_session_takes_no_loss(client: httpx.AsyncClient) -> None:
    await client.post(f"/api/v1/sessions/{SESSION}/finish", json={})

    assert (await post(client, upload())).status_code == 410


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [
        (CreateLossOutcome.SESSION_FULL, "has no room for another custom loss"),
        (CreateLossOutcome.TENANT_FULL, "finish those that are done"),
    ],
)
async def test_too_many_losses_are_refused(
    client: httpx.AsyncClient, store: StoreDouble, outcome: CreateLossOutcome, complaint: str
) -> None:
    store.custom_losses.outcome = outcome

    answer = await post(client, upload())

    assert answer.status_code == 400
    assert complaint in answer.json()["detail"]


async def test_a_future_of_a_loss_that_is_no_longer_kept_is_gone_for_its_owner_only(
    client: httpx.AsyncClient,
) -> None:
    body = {"request_id": LOSS_ID}

    mine = await client.post("/api/v1/retrieve_future", json=body)
    theirs = await client.post(
        "/api/v1/retrieve_future", json=body, headers={"X-API-Key": STRANGER_KEY}
    )

    assert (mine.status_code, theirs.status_code) == (410, 404)


async def test_a_pass_carries_its_loss_and_only_the_inputs_it_reads(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """Replaying it must need nothing that ends with the session."""
    await post(client, upload())

    await post_pass(
        client, pass_bytes(LOSS_ID, unread=types.TensorData(data=[1.0], dtype="float32"))
    )

    submission = store.submitted(ids.request_id(MODEL, 1))
    assert submission.error is None
    body = PassBody.from_payload(payload.decode(submission.body))
    assert (body.loss_fn, body.loss_id, body.custom_loss) == ("custom", LOSS_ID, LOSS)
    assert body.data[0].loss_fn_inputs.keys() == {"target_tokens", "scale"}
    assert body.data[0].loss_fn_inputs["scale"].tolist() == [0.5]


@pytest.mark.parametrize(
    "loss_id",
    [
        ids.loss_id(SESSION, 1),
        ids.loss_id("00000000-0000-4000-8000-000000000002", 0),
        "x",
        "a:b:c:d",
        MODEL,
        "",
        LOSS_ID + "\n",
    ],
)
async def test_a_loss_that_the_session_does_not_have_fails_the_pass(
    client: httpx.AsyncClient, store: StoreDouble, loss_id: str
) -> None:
    other = "00000000-0000-4000-8000-000000000002"
    store.custom_losses.records = {LOSS_ID: LOSS, ids.loss_id(other, 0): LOSS}

    await post_pass(client, pass_bytes(loss_id))

    error = store.submitted(ids.request_id(MODEL, 1)).error
    assert error is not None
    assert "does not exist in this session" in error.message


async def test_a_model_of_another_session_cannot_use_the_loss(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    other = "00000000-0000-4000-8000-000000000002"
    store.models.records[MODEL] = model_record(session_id=other)
    store.custom_losses.records = {LOSS_ID: LOSS}

    await post_pass(client, pass_bytes(LOSS_ID))

    error = store.submitted(ids.request_id(MODEL, 1)).error
    assert error is not None
    assert "does not exist in this session" in error.message


async def test_a_retry_of_a_pass_after_the_loss_is_gone_finds_its_promise(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await post(client, upload())
    first = await post_pass(client, pass_bytes(LOSS_ID))
    store.custom_losses.records.clear()

    again = await post_pass(client, pass_bytes(LOSS_ID))

    assert again.json() == first.json()
    assert store.submitted(ids.request_id(MODEL, 1)).error is None


async def test_a_pass_forward_only_may_have_a_custom_loss(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await post(client, upload())

    await post_pass(client, pass_bytes(LOSS_ID) + b"\x30\x01")  # field 6, forward_only

    submission = store.submitted(ids.request_id(MODEL, 1))
    assert (submission.kind, submission.error) == (OperationKind.FORWARD, None)
