from __future__ import annotations

import httpx
import pytest

from cyclora_core.accounts import AuditEntry
from cyclora_core.records import Session
from server.doubles.builders import (
    ADMIN_KEY,
    BASE,
    KEY,
    MODEL,
    SESSION,
    STRANGER,
    STRANGER_KEY,
    TENANT,
    checkpoint,
    model_record,
)
from server.doubles.store import StoreDouble


@pytest.fixture
def admin(client: httpx.AsyncClient) -> httpx.AsyncClient:
    client.headers["X-API-Key"] = ADMIN_KEY
    return client


async def test_a_new_tenant_is_listed(admin: httpx.AsyncClient) -> None:
    created = (await admin.post("/admin/v1/tenants", json={"name": "lab"})).json()

    listed = (await admin.get("/admin/v1/tenants")).json()["tenants"]

    assert created["name"] == "lab"
    assert created in listed


async def test_a_tenant_needs_a_name(admin: httpx.AsyncClient) -> None:
    assert (await admin.post("/admin/v1/tenants", json={"name": ""})).status_code == 422


async def test_a_tenant_gets_another_name(admin: httpx.AsyncClient) -> None:
    renamed = await admin.patch(f"/admin/v1/tenants/{STRANGER}", json={"name": "physics"})
    found = await admin.get(f"/admin/v1/tenants/{STRANGER}")

    assert renamed.status_code == 200
    assert renamed.json() == found.json()
    assert found.json()["name"] == "physics"


async def test_a_tenant_that_does_not_exist_is_neither_shown_nor_changed(
    admin: httpx.AsyncClient,
) -> None:
    assert (await admin.get("/admin/v1/tenants/nobody")).status_code == 404
    answer = await admin.patch("/admin/v1/tenants/nobody", json={"name": "x"})
    assert answer.status_code == 404


async def test_a_tenant_gets_another_weight(admin: httpx.AsyncClient) -> None:
    changed = await admin.patch(f"/admin/v1/tenants/{STRANGER}", json={"weight": 3})

    assert changed.json()["weight"] == 3.0
    assert changed.json()["name"] == STRANGER.upper()


@pytest.mark.parametrize("weight", [0, -1, 0.001, 1e9, None, "much"])
async def test_a_weight_that_would_starve_somebody_is_refused(
    admin: httpx.AsyncClient, weight: object
) -> None:
    answer = await admin.patch(f"/admin/v1/tenants/{STRANGER}", json={"weight": weight})

    assert answer.status_code == 422
    assert "weight" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body", [{"label": "x"}, {"name": None}, {"name": ""}, {"name": "a\x00"}, {"name": "\u202ex"}]
)
async def test_what_a_tenant_cannot_be_changed_to_is_refused(
    admin: httpx.AsyncClient, body: dict[str, str | None]
) -> None:
    answer = await admin.patch(f"/admin/v1/tenants/{STRANGER}", json=body)

    assert answer.status_code == 422
    assert "name" in answer.json()["detail"] or "label" in answer.json()["detail"]


async def test_a_new_key_is_shown_once_and_works(admin: httpx.AsyncClient) -> None:
    body = {"tenant_id": STRANGER, "name": "ci"}
    created = (await admin.post("/admin/v1/keys", json=body)).json()

    listed = await admin.get("/admin/v1/keys", params={"tenant_id": STRANGER})
    used = await admin.get("/api/v1/sessions", headers={"X-API-Key": created["api_key"]})

    assert used.status_code == 200
    assert created["api_key"] not in listed.text
    assert created["key_id"] in [key["key_id"] for key in listed.json()["keys"]]


async def test_a_key_of_no_tenant_is_refused(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/admin/v1/keys", json={"tenant_id": "nobody"})

    assert answer.status_code == 404


async def test_a_revoked_key_stops_working_and_stays_listed(admin: httpx.AsyncClient) -> None:
    assert (await admin.delete("/admin/v1/keys/key-a")).status_code == 200

    used = await admin.get("/api/v1/sessions", headers={"X-API-Key": KEY})
    listed = await admin.get("/admin/v1/keys", params={"tenant_id": TENANT})

    assert used.status_code == 401
    [key] = [key for key in listed.json()["keys"] if key["key_id"] == "key-a"]
    assert key["revoked_at"] is not None


async def test_revoking_an_unknown_key_is_not_found(admin: httpx.AsyncClient) -> None:
    assert (await admin.delete("/admin/v1/keys/key-x")).status_code == 404


async def test_workers_and_base_models_are_shown(admin: httpx.AsyncClient) -> None:
    workers = (await admin.get("/admin/v1/workers")).json()["workers"]
    base_models = (await admin.get("/admin/v1/base_models")).json()["base_models"]

    assert [(each["worker_id"], each["is_alive"]) for each in workers] == [("worker-1", True)]
    assert [each["name"] for each in base_models] == [BASE.name]


async def test_a_key_ends_when_it_was_said_to(admin: httpx.AsyncClient) -> None:
    sent = {"tenant_id": STRANGER, "expires_at": "2099-01-31T18:00:00+00:00"}
    at = (await admin.post("/admin/v1/keys", json=sent)).json()
    sent = {"tenant_id": STRANGER, "lifetime_s": 3600, "project_id": "alpha"}
    after = (await admin.post("/admin/v1/keys", json=sent)).json()

    listed = (await admin.get("/admin/v1/keys")).json()["keys"]
    found = {key["key_id"]: key for key in listed}

    assert found[at["key_id"]]["expires_at"] == at["expires_at"] == "2099-01-31T18:00:00+00:00"
    assert after["expires_at"] is not None
    assert after["project_id"] == "alpha"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expires_at": "2099-01-31T18:00:00"}, "timezone"),
        ({"expires_at": "2099-01-31T18:00:00Z", "lifetime_s": 5}, "ends once"),
        ({"lifetime_s": 0}, "lifetime_s"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"name": "a\nb"}, "printable"),
        ({"project_id": "../x"}, "project"),
        ({"expiry": "never"}, "expiry"),
    ],
)
async def test_a_key_that_is_not_understood_is_refused(
    admin: httpx.AsyncClient, changes: dict[str, object], reason: str
) -> None:
    answer = await admin.post("/admin/v1/keys", json={"tenant_id": STRANGER, **changes})

    assert answer.status_code in (400, 422)
    assert reason in answer.json()["detail"]


async def test_a_disabled_tenant_opens_again(admin: httpx.AsyncClient) -> None:
    statuses: list[int] = []
    for is_enabled in (False, True):
        body = {"is_enabled": is_enabled, "disabled_reason": "" if is_enabled else "invoice"}
        await admin.patch(f"/admin/v1/tenants/{STRANGER}", json=body)
        used = await admin.get("/api/v1/sessions", headers={"X-API-Key": STRANGER_KEY})
        statuses.append(used.status_code)

    assert statuses == [403, 200]


async def test_nobody_locks_themselves_out(admin: httpx.AsyncClient) -> None:
    path = f"/admin/v1/tenants/{TENANT}"

    disabled = await admin.patch(path, json={"is_enabled": False})
    deleted = await admin.delete(path, params={"force": "true"})

    assert (disabled.status_code, deleted.status_code) == (400, 400)
    assert (await admin.get(path)).json()["is_enabled"]


async def test_a_tenant_with_live_sessions_is_deleted_only_by_force(
    admin: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.sessions.records[SESSION] = Session(SESSION, STRANGER, 1000, 1000)
    store.models.records[MODEL] = model_record(tenant_id=STRANGER)
    store.checkpoints.put(checkpoint(tenant_id=STRANGER))
    path = f"/admin/v1/tenants/{STRANGER}"

    refused = await admin.delete(path)
    kept = dict(store.checkpoints.records)
    deleted = await admin.delete(path, params={"force": "true"})

    assert refused.status_code == 400
    assert "1 live session" in refused.json()["detail"]
    assert kept
    assert deleted.status_code == 200
    assert store.checkpoints.records == {}
    assert store.sessions.records[SESSION].finished_reason == "interrupted"
    assert (await admin.get(path)).status_code == 404
    used = await admin.get("/api/v1/sessions", headers={"X-API-Key": STRANGER_KEY})
    assert used.status_code == 401


async def test_projects_of_a_tenant_are_counted(
    admin: httpx.AsyncClient, store: StoreDouble
) -> None:
    other = "00000000-0000-4000-8000-0000000000a1"
    store.sessions.records = {
        SESSION: Session(SESSION, TENANT, 1000, 1000, project_id="alpha"),
        other: Session(other, TENANT, 1000, 1000),
    }
    store.models.records[MODEL] = model_record()
    store.checkpoints.put(checkpoint())

    found = (await admin.get(f"/admin/v1/tenants/{TENANT}/projects")).json()["projects"]

    assert found == [
        {
            "project_id": "alpha",
            "num_sessions": 1,
            "num_training_runs": 1,
            "num_checkpoints": 1,
            "stored_bytes": 123,
        },
        {
            "project_id": "default",
            "num_sessions": 1,
            "num_training_runs": 0,
            "num_checkpoints": 0,
            "stored_bytes": 0,
        },
    ]


async def test_the_audit_log_shows_all_tenants_and_the_deployment_newest_first(
    admin: httpx.AsyncClient, store: StoreDouble
) -> None:
    for tenant_id, event, at_ms in [
        (TENANT, "checkpoint_delete", 1000),
        (STRANGER, "organization_key_create", 2000),
        ("", "worker_drain", 3000),
        (STRANGER, "organization_update", 4000),
    ]:
        entry = AuditEntry(event, at_ms, {"key_id": "key-x", "name": "n"}, str(at_ms))
        store.audit.entries.append((tenant_id, entry))

    async def events(**query: str | int) -> list[str]:
        answer = await admin.get("/admin/v1/audit", params=query)
        return [entry["event"] for entry in answer.json()["entries"]]

    assert await events(limit=3) == [
        "organization_update",
        "worker_drain",
        "organization_key_create",
    ]
    assert await events(event="organization") == ["organization_update", "organization_key_create"]
    assert await events(event="organi") == []
    assert await events(tenant_id=TENANT) == ["checkpoint_delete"]
    assert await events(**{"from": "1970-01-01T00:00:02Z", "before": "1970-01-01T00:00:04Z"}) == [
        "worker_drain",
        "organization_key_create",
    ]
    first = (await admin.get("/admin/v1/audit")).json()["entries"][1]
    assert first == {
        "at": "1970-01-01T00:00:03+00:00",
        "tenant_id": None,
        "event": "worker_drain",
        "key_id": "key-x",
        "details": {"name": "n"},
    }
