from __future__ import annotations

from typing import Any

import httpx
import pytest

from cyclora_core import ids
from cyclora_core.operations import OperationKind
from cyclora_core.queues import WaitingOperation, WaitingState
from cyclora_core.types import (
    Cycle,
    EndedCycle,
    PlannedModel,
    PlannedOperation,
)
from server.doubles.builders import ADMIN_KEY, BASE, MODEL, SAMPLER, STRANGER, TENANT, pending
from server.doubles.store import StoreDouble

SAMPLE = ids.request_id(SAMPLER, 3)


def waiting(request_id: str, tenant_id: str = TENANT, **changes: Any) -> WaitingOperation:
    owner_id, _, seq_id = request_id.rpartition(":")
    is_sample = owner_id == SAMPLER
    kind = OperationKind.SAMPLE if is_sample else OperationKind.FORWARD_BACKWARD
    state = changes.get("state", WaitingState.QUEUED)
    return WaitingOperation(
        request_id, kind, tenant_id, owner_id, int(seq_id), BASE.name, 10, 1000, state
    )


@pytest.fixture
def admin(client: httpx.AsyncClient, store: StoreDouble) -> httpx.AsyncClient:
    client.headers["X-API-Key"] = ADMIN_KEY
    store.queues.operations = [
        waiting(f"{MODEL}:1", state=WaitingState.RUNNING),
        waiting(f"{MODEL}:2"),
        waiting(SAMPLE),
        waiting("00000000-0000-4000-8000-000000000009:train:0:1", STRANGER),
    ]
    store.futures.records[SAMPLE] = pending(SAMPLE, OperationKind.SAMPLE)
    return client


async def test_lengths_are_told_by_tenant_and_in_all(admin: httpx.AsyncClient) -> None:
    answer = (await admin.get("/admin/v1/queue")).json()

    first, second = answer["queue"]
    assert first.pop("oldest_s") > 0
    assert first == {
        "tenant_id": TENANT,
        "base_model": BASE.name,
        "num_models": 1,
        "num_operations": 2,
        "num_samples": 1,
        "num_tokens": 30,
        "num_running": 1,
    }
    assert second["tenant_id"] == STRANGER
    assert (answer["num_operations"], answer["num_samples"], answer["num_tokens"]) == (3, 1, 40)


async def test_an_empty_queue_has_no_oldest(admin: httpx.AsyncClient, store: StoreDouble) -> None:
    store.queues.operations = []

    answer = (await admin.get("/admin/v1/queue")).json()

    assert (answer["queue"], answer["num_tokens"], answer["oldest_s"]) == ([], 0, None)


async def test_what_waits_is_listed_page_by_page(admin: httpx.AsyncClient) -> None:
    query = {"tenant_id": TENANT, "limit": 1, "offset": 1}
    answer = (await admin.get("/admin/v1/queue/operations", params=query)).json()

    [row] = answer["operations"]
    assert answer["total"] == 3
    assert row == {
        "request_id": f"{MODEL}:2",
        "state": "queued",
        "kind": "forward_backward",
        "tenant_id": TENANT,
        "owner_id": MODEL,
        "seq_id": 2,
        "base_model": BASE.name,
        "num_tokens": 10,
        "submitted_at": "1970-01-01T00:00:01+00:00",
    }


@pytest.mark.parametrize(
    ("body", "cancelled"),
    [
        ({"tenant_id": STRANGER}, ["00000000-0000-4000-8000-000000000009:train:0:1"]),
        ({"model_id": MODEL}, [f"{MODEL}:1", f"{MODEL}:2"]),
        ({"request_id": SAMPLE}, [SAMPLE]),
    ],
)
async def test_what_is_named_is_cancelled_by_who_asked(
    admin: httpx.AsyncClient, store: StoreDouble, body: dict[str, str], cancelled: list[str]
) -> None:
    answer = await admin.post("/admin/v1/queue/cancel", json=body)

    assert answer.json() == {"num_cancelled": len(cancelled)}
    assert store.queues.cancelled == [(request_id, "key-admin") for request_id in cancelled]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"tenant_id": TENANT, "model_id": MODEL}, 422),
        ({"request_id": f"{MODEL}:1"}, 422),
        ({"request_id": ids.request_id(SAMPLER, 9)}, 404),
        ({"tenant_id": "nobody"}, 404),
        ({"model_id": "nothing"}, 404),
    ],
)
async def test_what_cannot_be_cancelled_is_refused(
    admin: httpx.AsyncClient, store: StoreDouble, body: dict[str, str], status: int
) -> None:
    answer = await admin.post("/admin/v1/queue/cancel", json=body)

    assert answer.status_code == status
    assert store.queues.cancelled == []


async def test_cycles_that_run_come_before_those_that_ended(
    admin: httpx.AsyncClient, store: StoreDouble
) -> None:
    def ended(number: int, worker_id: str = "worker-1") -> EndedCycle:
        return EndedCycle(
            number, BASE.name, worker_id, [TENANT], 1, 2, 3, 4, 1000, 2000, 3000 + number
        )

    operation = PlannedOperation(f"{MODEL}:1", OperationKind.FORWARD, 1)
    planned = PlannedModel(MODEL, TENANT, 1, [operation])
    store.workers.ended = [ended(1), ended(2), ended(3, "worker-2")]
    store.workers.running = [Cycle(4, BASE.name, "worker-1", [planned], [], 5000)]

    every = (await admin.get("/admin/v1/cycles")).json()["cycles"]
    query = {"worker_id": "worker-1", "limit": 2}
    some = (await admin.get("/admin/v1/cycles", params=query)).json()["cycles"]

    assert [each["cycle_id"] for each in every] == [4, 3, 2, 1]
    assert [each["cycle_id"] for each in some] == [4, 2]
    assert (every[0]["ended_at"], every[0]["num_tokens"]) == (None, None)
    assert every[3] == {
        "cycle_id": 1,
        "base_model": BASE.name,
        "worker_id": "worker-1",
        "tenants": [TENANT],
        "num_models": 1,
        "num_operations": 2,
        "num_samples": 3,
        "num_tokens": 4,
        "dispatched_at": "1970-01-01T00:00:01+00:00",
        "started_at": "1970-01-01T00:00:02+00:00",
        "ended_at": "1970-01-01T00:00:03.001000+00:00",
    }
