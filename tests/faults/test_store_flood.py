"""More work than the store can hold: refused in time, and what was accepted is finished."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from core.builders import BASE_MODEL, LEASE_S
from cyclora_core import ids
from cyclora_core.clock import SystemClock
from cyclora_core.records import FutureState
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.store.operations import Outcome, SettleOutcome
from cyclora_core.types import BaseModelInfo
from cyclora_core.waiting import WorkerStats
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.settings import SchedulerSettings
from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from faults.own_valkey import OwnValkey

LIMIT_BYTES = 64 * 1024**2
NUM_TOKENS = 60_000
NUM_MODELS = 6
PROTOBUF = {"Content-Type": "application/x-protobuf"}
INFO = BaseModelInfo(BASE_MODEL, 2**31 - 1, 2**20, [2], "Any", 1000, 64, "/a/b/c/d")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnValkey]:
    with OwnValkey(tmp_path) as process:
        process.start()
        process.set_max_memory(LIMIT_BYTES)
        yield process


@pytest.fixture
async def store(own: OwnValkey) -> AsyncIterator[Store]:
    opened = await Store.open(own.url, patience_s=3600)
    await opened.workers.register("worker-1", "worker", INFO, LEASE_S, WorkerStats(0, 0, 0))
    yield opened
    await opened.close()


@pytest.fixture
async def client(own: OwnValkey, store: Store, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    tenant = await store.tenants.create("flood")
    key, _ = await store.api_keys.create(tenant.tenant_id, "key")
    served = await Store.open(own.url)
    settings = Settings(storage_url=str(tmp_path), min_free_disk_bytes=0, poll_hold_s=0)
    app = create_app(settings, served, Storage(tmp_path), SystemClock())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://server",
            headers={"X-API-Key": key},
        ) as client,
    ):
        yield client
    await served.close()


def large_pass(model_id: str, seq_id: int) -> bytes:
    """A forward pass that no compression makes smaller."""
    tokens = np.frombuffer(secrets.token_bytes(4 * NUM_TOKENS), np.int32) & 0x7FFFFFFF
    inputs: dict[str, Any] = {"target_tokens": tokens.tolist(), "weights": [1.0] * NUM_TOKENS}
    prompt = types.ModelInput.from_ints((tokens % 1000).tolist())
    datum = types.Datum(model_input=prompt, loss_fn_inputs=inputs)
    body = ForwardBackwardInput(data=[datum], loss_fn="cross_entropy")
    request = ForwardBackwardRequest(forward_backward_input=body, model_id=model_id, seq_id=seq_id)
    message = forward_backward_request_to_proto(request)
    message.forward_only = True
    return message.SerializeToString()


async def new_model(client: httpx.AsyncClient, session_id: str, number: int) -> str:
    body = {"session_id": session_id, "model_seq_id": number, "base_model": BASE_MODEL}
    answer = await client.post("/api/v1/create_model", json=body | {"lora_config": {"rank": 8}})
    assert answer.status_code == 200, answer.text
    return ids.model_id(session_id, number)


async def flood(client: httpx.AsyncClient, model_id: str) -> list[int]:
    """Submit until refused; returns the statuses."""
    statuses = [200]
    while statuses[-1] == 200:
        content = large_pass(model_id, len(statuses))
        answer = await client.post("/api/v1/forward_backward", content=content, headers=PROTOBUF)
        statuses.append(answer.status_code)
    return statuses[1:]


async def finish_everything(store: Store, scheduler: Scheduler) -> Counter[SettleOutcome]:
    """Run cycles until nothing waits, as a worker does."""
    outcomes: Counter[SettleOutcome] = Counter()
    last_cycle_id = 0
    while await scheduler.tick():
        cycle = await store.workers.claim("worker-1", last_cycle_id, 0)
        assert cycle is not None
        for model in cycle.models:
            for operation in model.operations:
                outcome = await store.operations.settle(
                    worker_id="worker-1",
                    epoch=model.epoch,
                    tenant_id=model.tenant_id,
                    base_model=BASE_MODEL,
                    model_id=model.model_id,
                    operation=operation,
                    outcome=Outcome(b"done", num_tokens=1),
                )
                outcomes[outcome] += 1
        last_cycle_id = cycle.cycle_id
        await store.workers.release("worker-1", cycle.cycle_id, WorkerStats())
    return outcomes


async def test_a_flood_is_refused_in_time_and_everything_accepted_is_finished(
    own: OwnValkey, store: Store, client: httpx.AsyncClient
) -> None:
    answer = await client.post("/api/v1/create_session", json={"sdk_version": "1", "tags": []})
    session_id = answer.json()["session_id"]
    models = [await new_model(client, session_id, number) for number in range(NUM_MODELS)]

    statuses = await asyncio.gather(*(flood(client, model_id) for model_id in models))

    counts = Counter(status for each in statuses for status in each)
    assert counts.keys() == {200, 429}
    assert counts[200] > 2 * NUM_MODELS
    with own.client() as direct:
        assert "errorstat_OOM" not in direct.info("errorstats")
        assert direct.info("memory")["used_memory"] <= LIMIT_BYTES

    scheduler = Scheduler(store, SchedulerSettings(coalesce_ms=0, company_ms=0), SystemClock())
    outcomes = await finish_everything(store, scheduler)

    assert outcomes == {SettleOutcome.SETTLED: counts[200] + NUM_MODELS}
    for model_id, each in zip(models, statuses, strict=True):
        futures = [await store.futures.get(f"{model_id}:{seq}") for seq in range(len(each))]
        assert {future and future.state for future in futures} == {FutureState.DONE}
    refused = large_pass(models[0], len(statuses[0]))
    async with asyncio.timeout(20):
        while True:  # the server measures once a second
            again = await client.post("/api/v1/forward_backward", content=refused, headers=PROTOBUF)
            if again.status_code == 200:
                break
            assert again.status_code == 429
