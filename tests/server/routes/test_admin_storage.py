from __future__ import annotations

from typing import Any

import httpx
import pytest

from cyclora_core.operations import OperationKind
from cyclora_core.store.processes import ProcessSettings
from server.doubles.builders import (
    ADMIN_KEY,
    BASE,
    MODEL,
    STRANGER,
    TENANT,
    checkpoint,
    model_record,
)
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble

OTHER = "00000000-0000-4000-8000-000000000009:train:0"


@pytest.fixture
def admin(client: httpx.AsyncClient, store: StoreDouble) -> httpx.AsyncClient:
    client.headers["X-API-Key"] = ADMIN_KEY
    store.models.records[OTHER] = model_record(
        model_id=OTHER, tenant_id=STRANGER, is_ended=True, project_id="paper", created_at_ms=5000
    )
    store.checkpoints.put(checkpoint("first", num_bytes=10))
    path = f"tinker://{OTHER}/weights/second"
    store.checkpoints.put(
        checkpoint(
            "second",
            path=path,
            tenant_id=STRANGER,
            model_id=OTHER,
            num_bytes=20,
            is_public=True,
            created_at_ms=5000,
            expires_at_ms=6000,
        )
    )
    return client


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["first", "second"]),
        ({"tenant_id": STRANGER}, ["second"]),
        ({"model_id": MODEL}, ["first"]),
        ({"base_model": "other/base"}, []),
        ({"name": "eco"}, ["second"]),
        ({"created_before": "1970-01-01T00:00:02Z"}, ["first"]),
        ({"created_after": "1970-01-01T00:00:02Z"}, ["second"]),
        ({"min_bytes": 11}, ["second"]),
        ({"is_expired": True}, ["second"]),
        ({"is_public": False}, ["first"]),
    ],
)
async def test_checkpoints_are_found_across_tenants_with_their_size(
    admin: httpx.AsyncClient, query: dict[str, Any], found: list[str]
) -> None:
    answer = (await admin.get("/admin/v1/checkpoints", params=query)).json()

    assert [each["name"] for each in answer["checkpoints"]] == found
    sizes = {"first": 10, "second": 20}
    assert (answer["num"], answer["num_bytes"]) == (len(found), sum(sizes[n] for n in found))


async def test_a_page_tells_the_size_of_all(admin: httpx.AsyncClient) -> None:
    query = {"limit": 1, "offset": 1}
    answer = (await admin.get("/admin/v1/checkpoints", params=query)).json()

    [row] = answer["checkpoints"]
    assert (answer["num"], answer["num_bytes"]) == (2, 30)
    assert row == {
        "path": f"tinker://{OTHER}/weights/second",
        "tenant_id": STRANGER,
        "model_id": OTHER,
        "kind": "weights",
        "name": "second",
        "base_model": BASE.name,
        "num_bytes": 20,
        "created_at": "1970-01-01T00:00:05+00:00",
        "expires_at": "1970-01-01T00:00:06+00:00",
        "is_expired": True,
        "is_public": True,
    }


async def test_a_checkpoint_of_any_tenant_can_be_deleted(
    admin: httpx.AsyncClient, store: StoreDouble, storage: StorageDouble
) -> None:
    path = f"tinker://{MODEL}/weights/first"

    assert (await admin.delete("/admin/v1/checkpoints", params={"path": path})).status_code == 200

    assert storage.deleted == [path]
    again = await admin.delete("/admin/v1/checkpoints", params={"path": path})
    assert again.status_code == 404
    broken = await admin.delete("/admin/v1/checkpoints", params={"path": "../etc"})
    assert broken.status_code == 400


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [MODEL, OTHER]),
        ({"tenant_id": TENANT}, [MODEL]),
        ({"model_id": OTHER}, [OTHER]),
        ({"project_id": "paper"}, [OTHER]),
        ({"is_ended": False}, [MODEL]),
        ({"created_before": "1970-01-01T00:00:02Z"}, [MODEL]),
        ({"base_model": "other/base"}, []),
    ],
)
async def test_runs_are_found_across_tenants(
    admin: httpx.AsyncClient, query: dict[str, Any], found: list[str]
) -> None:
    answer = (await admin.get("/admin/v1/runs", params=query)).json()

    assert [each["model_id"] for each in answer["runs"]] == found
    assert answer["num"] == len(found)


async def test_a_run_tells_what_it_has_and_does(admin: httpx.AsyncClient) -> None:
    [row] = (await admin.get("/admin/v1/runs", params={"model_id": MODEL})).json()["runs"]

    assert row == {
        "model_id": MODEL,
        "tenant_id": TENANT,
        "project_id": "default",
        "base_model": BASE.name,
        "lora_rank": 8,
        "is_ended": False,
        "worker_id": None,
        "created_at": "1970-01-01T00:00:01+00:00",
        "last_request_at": "1970-01-01T00:00:02+00:00",
        "num_waiting": 0,
        "num_checkpoints": 1,
        "num_bytes": 10,
    }


async def test_a_run_that_lives_is_ended_and_its_checkpoints_go(
    admin: httpx.AsyncClient, store: StoreDouble, storage: StorageDouble
) -> None:
    answer = (await admin.delete(f"/admin/v1/runs/{MODEL}")).json()

    assert answer == {"num_cancelled": 0, "num_checkpoints": 1, "is_forgotten": False}
    assert store.submitted(f"{MODEL}:1").kind is OperationKind.UNLOAD_MODEL
    assert storage.deleted == [f"tinker://{MODEL}/weights/first"]
    assert [(owner, each.event) for owner, each in store.audit.entries] == [(TENANT, "run_delete")]


async def test_a_run_that_has_ended_is_forgotten(
    admin: httpx.AsyncClient, store: StoreDouble
) -> None:
    answer = (await admin.delete(f"/admin/v1/runs/{OTHER}")).json()

    assert answer["is_forgotten"]
    assert OTHER not in store.models.records
    assert (await admin.delete(f"/admin/v1/runs/{OTHER}")).status_code == 404


async def test_the_settings_in_force_are_told(admin: httpx.AsyncClient, store: StoreDouble) -> None:
    store.processes.records = [ProcessSettings("worker", "worker-0", 1000, {"threads": 2})]

    answer = (await admin.get("/admin/v1/settings")).json()

    assert answer["server"]["poll_hold_s"] == 0.0
    assert answer["processes"] == [
        {
            "kind": "worker",
            "name": "worker-0",
            "started_at": "1970-01-01T00:00:01+00:00",
            "settings": {"threads": 2},
        }
    ]
