"""How long a result can be fetched, and what is answered afterwards: routes and a real store."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio as aioredis

from core.builders import BASE_MODEL, LEASE_S
from core.test_store_cycles import dispatch_samples
from core.test_store_operations import gathered
from cyclora_core import ids, payload
from cyclora_core.clock import SystemClock
from cyclora_core.operations import OperationKind, OptimStepResult, Result
from cyclora_core.samples import SampleResult
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.store.operations import Outcome
from cyclora_core.types import BaseModelInfo, Cycle, PlannedModel, PlannedOperation
from cyclora_core.waiting import Assignment, WorkerStats
from cyclora_server.app import create_app
from cyclora_server.background import Background
from cyclora_server.settings import Settings

INFO = BaseModelInfo(BASE_MODEL, 64, 128, [2], "Any", 1000, 64, "/a/b/c/d")
KEPT = "results are kept for 24 hours after they became final, for 60 minutes after"


@dataclass
class Deployment:
    """A client, the store behind its server, and the store's own keys."""

    client: httpx.AsyncClient
    store: Store
    raw: Any
    prefix: str
    tenant_id: str
    background: Background
    session_id: str = ""

    @property
    def model_id(self) -> str:
        return ids.model_id(self.session_id, 0)

    async def post(self, route: str, **body: Any) -> httpx.Response:
        return await self.client.post(f"/api/v1/{route}", json=body)

    async def retrieve(self, request_id: str) -> httpx.Response:
        response = await self.post("retrieve_future", request_id=request_id)
        await self.background.finish(timeout_s=30)
        return response

    async def step(self) -> httpx.Response:
        adam = {"learning_rate": 0.5}
        return await self.post("optim_step", model_id=self.model_id, seq_id=1, adam_params=adam)

    async def expire(self, request_id: str) -> None:
        """Let the time pass for which the future is kept."""
        key = f"{self.prefix}:future:{request_id}"
        assert await self.raw.pttl(key) > 0
        await self.raw.pexpire(key, 0)


@pytest.fixture
async def deployment(redis_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    store = await Store.open(redis_url, prefix)
    stats = WorkerStats(free_sample_tokens=1000, max_sample_tokens=1000)
    await store.workers.register("worker-1", "worker", INFO, LEASE_S, stats)
    tenant = await store.tenants.create("tenant")
    key, _ = await store.api_keys.create(tenant.tenant_id, "key")
    settings = Settings(poll_hold_s=0.0, min_free_disk_bytes=0, max_store_memory_fraction=1.0)
    app = create_app(settings, store, Storage(tmp_path), SystemClock())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://server",
            headers={"X-API-Key": key},
        ) as client,
        aioredis.Redis.from_url(redis_url) as raw,
    ):
        background = app.state.services.background
        made = Deployment(client, store, raw, prefix, tenant.tenant_id, background)
        answer = await made.post("create_session", sdk_version="1", tags=[])
        made.session_id = answer.json()["session_id"]
        yield made
    await store.close()


def encoded(result: Result) -> bytes:
    return payload.encode(result.to_payload())


async def trained(deployment: Deployment) -> str:
    """A model that made one optimizer step; returns the step's request id."""
    store, model_id = deployment.store, deployment.model_id
    body = {"session_id": deployment.session_id, "model_seq_id": 0, "base_model": BASE_MODEL}
    await deployment.post("create_model", **body, lora_config={"rank": 8})
    await deployment.step()
    await store.cycles.lead("t", 30)
    (model,) = (await gathered(store)).models
    operations = [PlannedOperation(o.request_id, o.kind, o.seq_id) for o in model.operations]
    planned = PlannedModel(model_id, deployment.tenant_id, 1, operations)
    cycle = Cycle(0, BASE_MODEL, "worker-1", [planned], [])
    assert await store.cycles.dispatch("t", cycle, [Assignment(planned, None, 0)], []) == 1
    for operation in operations:
        await store.operations.settle(
            worker_id="worker-1",
            epoch=1,
            tenant_id=deployment.tenant_id,
            base_model=BASE_MODEL,
            model_id=model_id,
            operation=operation,
            outcome=Outcome(encoded(OptimStepResult({"loss": 1.0})), num_tokens=1),
        )
    return f"{model_id}:1"


async def sampled(deployment: Deployment) -> str:
    """One finished sample; returns its request id."""
    store = deployment.store
    opened = await deployment.post(
        "create_sampling_session",
        session_id=deployment.session_id,
        sampling_session_seq_id=0,
        base_model=BASE_MODEL,
    )
    sampler = opened.json()["sampling_session_id"]
    assert (await sample(deployment)).status_code == 200
    assert await dispatch_samples(store) == 1
    await store.operations.settle_sample(
        worker_id="worker-1",
        tenant_id=deployment.tenant_id,
        base_model=BASE_MODEL,
        sampling_session_id=sampler,
        seq_id=1,
        request_id=f"{sampler}:1",
        outcome=Outcome(encoded(SampleResult([], None, None)), num_tokens=1),
    )
    return f"{sampler}:1"


async def sample(deployment: Deployment) -> httpx.Response:
    return await deployment.post(
        "asample",
        sampling_session_id=ids.sampling_session_id(deployment.session_id, 0),
        seq_id=1,
        num_samples=1,
        prompt={"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        sampling_params={"max_tokens": 4, "seed": 1},
    )


async def test_a_result_can_be_fetched_again_and_again(deployment: Deployment) -> None:
    request_id = await trained(deployment)

    answers = [await deployment.retrieve(request_id) for _ in range(3)]

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


async def test_a_pending_future_never_expires(deployment: Deployment) -> None:
    body = {"session_id": deployment.session_id, "model_seq_id": 0, "base_model": BASE_MODEL}
    await deployment.post("create_model", **body, lora_config={"rank": 8})

    key = f"{deployment.prefix}:future:{deployment.model_id}:0"

    assert await deployment.raw.pttl(key) == -1


@pytest.mark.parametrize("make", [trained, sampled])
async def test_after_its_time_a_result_is_gone_for_good_and_the_answer_says_why(
    deployment: Deployment, make: Any
) -> None:
    request_id = await make(deployment)
    assert (await deployment.retrieve(request_id)).status_code == 200
    await deployment.expire(request_id)

    answers = [await deployment.retrieve(request_id) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [410, 410]
    assert KEPT in answers[0].json()["detail"]


async def test_a_late_retry_of_a_step_is_refused_and_does_not_run_again(
    deployment: Deployment,
) -> None:
    request_id = await trained(deployment)
    assert (await deployment.step()).json()["request_id"] == request_id
    await deployment.expire(request_id)

    answer = await deployment.step()

    assert answer.status_code == 410
    assert "it does not run again" in answer.json()["detail"]
    assert KEPT in answer.json()["detail"]
    assert (await gathered(deployment.store)).is_empty
    assert (await deployment.retrieve(request_id)).status_code == 410
    usage = await deployment.store.tenants.usage(deployment.tenant_id)
    assert usage[f"{OperationKind.OPTIM_STEP}_tokens"] == 1


async def test_a_late_retry_of_a_sample_is_refused_and_does_not_run_again(
    deployment: Deployment,
) -> None:
    request_id = await sampled(deployment)
    assert (await sample(deployment)).json()["request_id"] == request_id
    await deployment.expire(request_id)

    answer = await sample(deployment)

    assert answer.status_code == 410
    assert (await gathered(deployment.store)).is_empty


async def test_an_acknowledged_result_is_kept_for_a_while_longer(deployment: Deployment) -> None:
    request_id = await sampled(deployment)
    sampler = request_id.rpartition(":")[0]

    await deployment.post(
        "retrieve_futures",
        target={"type": "sampling_session", "sampling_session_id": sampler},
        retrieved_request_ids=[request_id],
    )

    assert (await deployment.retrieve(request_id)).status_code == 200
    left_ms = await deployment.raw.pttl(f"{deployment.prefix}:future:{request_id}")
    assert 0 < left_ms <= 10 * 60 * 1000


async def test_a_result_that_was_fetched_is_kept_for_an_hour_and_not_for_a_day(
    deployment: Deployment,
) -> None:
    request_id = await trained(deployment)
    key = f"{deployment.prefix}:future:{request_id}"
    before_ms = await deployment.raw.pttl(key)

    await deployment.retrieve(request_id)
    after_ms = await deployment.raw.pttl(key)
    await deployment.store.futures.acknowledge([request_id])
    await deployment.retrieve(request_id)

    assert 23 * 3600_000 < before_ms <= 24 * 3600_000
    assert 3500_000 < after_ms <= 3600_000
    assert await deployment.raw.pttl(key) <= 600_000
