"""However often and in whatever order requests arrive, each has its effect once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from faults import http_requests
from faults.deployment import PLAIN_WORKER, Deployment, Shape, deployed
from faults.http_client import HttpClient
from faults.http_requests import Request
from faults.processes import Processes
from faults.retry_storm import INVALID_PASS, NUM_NUMBERED, Meddler, RunRecord, Sender, Storm, play

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def deployment(
    processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("storm")
    with deployed(processes, folder, Shape(worker_command=PLAIN_WORKER)) as running:
        yield running


@pytest.fixture(scope="module")
def in_order(deployment: Deployment) -> RunRecord:
    """What the requests do when each is sent once, after the one before it has settled."""
    return asyncio.run(play(deployment, Sender()))


def test_the_orderly_run_fails_in_one_request_and_logs_each_once(in_order: RunRecord) -> None:
    failed = [i for i, outcome in enumerate(in_order.outcomes) if outcome["error"]]

    assert failed == [INVALID_PASS]
    assert in_order.outcomes[INVALID_PASS]["category"] == "user"
    assert in_order.logged_seq_ids == list(range(NUM_NUMBERED + 1))


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))]
)
async def test_requests_repeated_in_any_order_have_the_effect_of_each_sent_once_in_order(
    seed: int, deployment: Deployment, in_order: RunRecord
) -> None:
    stormy = await play(deployment, Storm(seed))

    assert stormy == in_order


async def test_another_request_with_a_used_number_is_refused_and_changes_nothing(
    deployment: Deployment, in_order: RunRecord
) -> None:
    meddler = Meddler()

    assert await play(deployment, meddler) == in_order
    assert len(meddler.refusals) > NUM_NUMBERED
    assert set(meddler.refusals) == {400}


async def test_a_save_that_failed_for_its_name_has_the_same_promise_when_sent_again(
    deployment: Deployment,
) -> None:
    """What it failed for still holds, and must not be taken for another request."""
    async with new_client(deployment) as client:
        model_id = await new_model(client)
        await succeed(client, http_requests.save_weights(model_id, 1, "taken"))
        again = http_requests.save_weights(model_id, 2, "taken")
        promise = await client.submit(again)

        assert (await client.outcome(promise)).category == "user"
        assert await client.submit(again) == promise


async def test_a_load_has_the_same_promise_when_sent_again_after_its_checkpoint_is_deleted(
    deployment: Deployment,
) -> None:
    async with new_client(deployment) as client:
        model_id = await new_model(client)
        await succeed(client, http_requests.save_weights(model_id, 1, "loaded"))
        load = http_requests.load_weights(model_id, 2, "loaded", optimizer=True)
        promise = await succeed(client, load)
        await client.delete(f"training_runs/{model_id}/checkpoints/weights/loaded")

        assert await client.submit(load) == promise
        assert (await client.outcome(promise)).is_done


async def test_a_load_that_failed_has_the_same_promise_when_sent_again_after_a_save(
    deployment: Deployment,
) -> None:
    async with new_client(deployment) as client:
        model_id = await new_model(client)
        load = http_requests.load_weights(model_id, 1, "late", optimizer=True)
        promise = await client.submit(load)
        await succeed(client, http_requests.save_weights(model_id, 2, "late"))

        assert await client.submit(load) == promise
        assert (await client.outcome(promise)).category == "user"


def new_client(deployment: Deployment) -> HttpClient:
    _, api_key = deployment.new_tenant(uuid.uuid4().hex)
    return HttpClient(deployment.base_url, api_key)


async def new_model(client: HttpClient) -> str:
    session_id = await client.open_session()
    return (await client.run(http_requests.create_model(session_id))).value()["model_id"]


async def succeed(client: HttpClient, request: Request) -> str:
    """Run a request that must not fail; returns its promise."""
    promise = await client.submit(request)
    (await client.outcome(promise)).value()
    return promise
