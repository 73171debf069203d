from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from structlog.testing import capture_logs
from tinker.proto.response_conv import deserialize_forward_backward_output
from tinker.types.futures_retrieve_response import FuturesRetrieveResponse
from tinker.types.request_failed_response import RequestFailedResponse
from tinker.types.try_again_response import TryAgainResponse

from cyclora_core.errors import Unavailable
from cyclora_core.operations import OperationKind, OptimStepResult, PassResult
from cyclora_core.records import WorkerStatus
from cyclora_server.routes.futures import MAX_UNANNOUNCED_BYTES
from server.doubles.builders import BASE, MODEL, SAMPLER, STRANGER_KEY, pending, user_error
from server.doubles.store import StoreDouble

REQUEST = f"{MODEL}:1"
SAMPLE = f"{SAMPLER}:1"


@pytest.fixture(autouse=True)
def promises(store: StoreDouble) -> None:
    store.futures.records = {
        REQUEST: pending(REQUEST, OperationKind.FORWARD_BACKWARD),
        SAMPLE: pending(SAMPLE, OperationKind.SAMPLE),
    }


async def retrieve(
    client: httpx.AsyncClient, request_id: str = REQUEST, **headers: str
) -> httpx.Response:
    body = {"request_id": request_id, "allow_metadata_only": True}
    return await client.post("/api/v1/retrieve_future", json=body, headers=headers)


async def retrieve_all(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    target = {"type": "sampling_session", "sampling_session_id": SAMPLER}
    return await client.post("/api/v1/retrieve_futures", json={"target": target} | body)


async def test_a_pending_future_is_answered_408_and_not_200(client: httpx.AsyncClient) -> None:
    """The SDK logs a warning for every try_again that comes with a 200."""
    answer = await retrieve(client)

    assert answer.status_code == 408
    response = TryAgainResponse.model_validate(answer.json())
    assert response.request_id == REQUEST
    assert response.queue_state == "active"


@pytest.mark.parametrize("request_id", [REQUEST, SAMPLE])
@pytest.mark.parametrize(
    "workers", [[], [WorkerStatus("w", BASE.name, 1000, is_alive=False, cycle_id=None)]]
)
async def test_who_waits_learns_that_no_worker_serves_the_base_model(
    client: httpx.AsyncClient, store: StoreDouble, request_id: str, workers: list[WorkerStatus]
) -> None:
    store.workers.records = workers

    answer = await retrieve(client, request_id)

    assert answer.json()["queue_state"] == "paused_capacity"
    assert answer.json()["queue_state_reason"] == "no worker serves org/tiny at the moment"


async def test_the_poll_gets_the_result_in_the_form_it_accepts(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.futures.settle(REQUEST, PassResult([np.asarray([-1, -2], np.float32)], {"loss:sum": 3.0}))

    protobuf = await retrieve(client, Accept="application/x-protobuf")
    text = await retrieve(client, Accept="application/json")

    assert protobuf.headers["Content-Type"] == "application/x-protobuf"
    output = deserialize_forward_backward_output(protobuf.content)
    assert output.metrics == {"loss:sum": 3.0}
    assert text.json()["metrics"] == {"loss:sum": 3.0}


async def test_a_result_can_be_fetched_again(client: httpx.AsyncClient, store: StoreDouble) -> None:
    store.futures.settle(REQUEST, PassResult([], {}))

    answers = [await retrieve(client) for _ in range(2)]

    assert answers[0].content == answers[1].content


async def test_a_failed_future_says_who_must_act(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.futures.settle(REQUEST, error=user_error("rank is 0"))

    answer = await retrieve(client, Accept="application/x-protobuf")

    assert answer.status_code == 200
    response = RequestFailedResponse.model_validate(answer.json())
    assert response.error == "rank is 0"
    assert response.category == "user"


async def test_a_result_that_cannot_be_encoded_ends_its_future(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """The SDK polls again at once after a 5xx, and would do so for ever."""
    store.futures.settle(REQUEST, OptimStepResult({}))
    with capture_logs() as logs:
        answer = await retrieve(client)

    assert answer.status_code == 200
    assert answer.json()["category"] == "server"
    assert logs[0]["error_id"] in answer.json()["error"]


async def test_a_future_no_longer_kept_is_gone_for_its_owner(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """410 makes the SDK sample anew; a 404 would be fatal to it."""
    store.futures.records.clear()

    assert (await retrieve(client, REQUEST)).status_code == 410
    assert (await retrieve(client, SAMPLE)).status_code == 410


@pytest.mark.parametrize("request_id", [REQUEST, SAMPLE, "nonsense", ""])
async def test_a_strangers_poll_finds_nothing_and_destroys_nothing(
    client: httpx.AsyncClient, store: StoreDouble, request_id: str
) -> None:
    before = dict(store.futures.records)

    answer = await retrieve(client, request_id, **{"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404
    assert answer.json() == {"detail": f"request {request_id!r} does not exist"}
    assert store.futures.records == before


@pytest.mark.parametrize("part", ["api_keys.of_secret", "futures.get", "workers.list"])
@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (Unavailable("the store is restarting"), "the store is restarting"),
        (ValueError("secret"), "internal error"),
    ],
)
async def test_a_poll_backs_off_from_whatever_fails_on_the_way(
    client: httpx.AsyncClient,
    store: StoreDouble,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    error: Exception,
    complaint: str,
) -> None:
    """The SDK repeats a poll that got a 5xx without any pause; only 429 makes it wait."""

    async def fail(*_: object) -> None:
        raise error

    owner, _, method = part.partition(".")
    monkeypatch.setattr(getattr(store, owner), method, fail)

    answer = await retrieve(client)

    assert answer.status_code == 429
    assert complaint in answer.json()["detail"]
    assert "secret" not in answer.text


async def test_a_session_poller_gets_completions_and_its_next_cursor(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.futures.records[f"{SAMPLER}:2"] = pending(f"{SAMPLER}:2", OperationKind.SAMPLE)
    store.futures.settle(SAMPLE, OptimStepResult({}))
    store.futures.settle(f"{SAMPLER}:2", error=user_error())

    answer = await retrieve_all(client)

    response = FuturesRetrieveResponse.model_validate(answer.json())
    assert [(each.state, each.request_id) for each in response.completions] == [
        ("finished", SAMPLE),
        ("failed", f"{SAMPLER}:2"),
    ]
    assert response.cursor == 2


async def test_a_session_poller_without_completions_keeps_its_cursor(
    client: httpx.AsyncClient,
) -> None:
    answer = await retrieve_all(client, prev_cursor=5, timeout=0)

    assert answer.json() == {"completions": [], "cursor": 5}


async def test_only_results_of_the_own_sampling_session_are_let_go(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await retrieve_all(client, retrieved_request_ids=[SAMPLE, REQUEST, f"{SAMPLER}1:1"])

    assert store.futures.acknowledged == [SAMPLE]


async def test_a_stranger_polls_no_sampling_session(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    client.headers["X-API-Key"] = STRANGER_KEY

    answer = await retrieve_all(client, retrieved_request_ids=[SAMPLE])

    assert answer.status_code == 404
    assert store.futures.acknowledged == []


async def test_a_large_result_is_announced_with_its_size_to_who_asks(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """The SDK bounds what it receives at one time by it."""
    logprobs = np.zeros(MAX_UNANNOUNCED_BYTES // 4 + 1, np.float32)
    store.futures.settle(REQUEST, PassResult([logprobs], {}))

    announced = await retrieve(client, Accept="application/x-protobuf")
    body = {"request_id": REQUEST, "allow_metadata_only": False}
    headers = {"Accept": "application/x-protobuf"}
    fetched = await client.post("/api/v1/retrieve_future", json=body, headers=headers)

    assert announced.json() == {
        "status": "complete_metadata",
        "response_payload_size": len(fetched.content),
    }
    assert deserialize_forward_backward_output(fetched.content).loss_fn_outputs
