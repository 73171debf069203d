"""Every change is in the audit log: walks all routes that change something, on a real store."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from core.builders import SESSION_ID, add_worker, model_id, submission, submit
from core.test_store_checkpoints import checkpoint
from cyclora_core.accounts import TENANT_SCOPES, Scope
from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import OperationKind
from cyclora_core.records import Checkpoint, Session
from cyclora_core.store import Store
from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from server.doubles.checkpoints import StorageDouble
from server.walk import methods_and_paths

ONE = "/api/v1/training_runs/{run}/checkpoints/{kind}/{name}"
CHANGING = {"POST", "PUT", "PATCH", "DELETE"}


@dataclass(frozen=True)
class Act:
    """A request that changes something, and the event that tells of it."""

    event: str
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    after: str = ""
    """A route that is called first, for there to be something to change."""


ADMIN_ACTS = {
    "POST /admin/v1/tenants": Act("organization_create", {"name": "new"}),
    "PATCH /admin/v1/tenants/{tenant_id}": Act("organization_update", {"name": "other"}),
    "DELETE /admin/v1/tenants/{tenant_id}": Act("organization_delete"),
    "POST /admin/v1/keys": Act("organization_key_create", {"tenant_id": "{tenant_id}"}),
    "DELETE /admin/v1/keys/{key_id}": Act("organization_key_revoke"),
    "PUT /admin/v1/tenants/{tenant_id}/quotas": Act("organization_update", {"max_rank": 8}),
    "POST /admin/v1/queue/cancel": Act("queue_cancel", {"model_id": "{model_id}"}),
    "POST /admin/v1/workers/{worker_id}/drain": Act("worker_drain"),
    "POST /admin/v1/workers/{worker_id}/resume": Act("worker_resume"),
    "POST /admin/v1/models/{model_id}/load": Act("model_load"),
    "POST /admin/v1/models/{model_id}/unload": Act("model_unload"),
    "POST /admin/v1/models/{model_id}/move": Act("model_move", {"worker_id": "{worker_id}"}),
    "DELETE /admin/v1/runs/{model_id}": Act("run_delete"),
    "DELETE /admin/v1/checkpoints": Act("checkpoint_delete", query={"path": "{path}"}),
    "POST /admin/v1/garbage": Act("garbage_collect", {"dry_run": False}),
}
"""Every route below ``/admin`` that is no GET."""

TENANT_ACTS = {
    "DELETE /api/v1/auth/apikey/me": Act("organization_key_revoke"),
    "PUT /api/v1/sessions/{session_id}/project": Act(
        "project_assign_session", {"project_id": "alpha"}
    ),
    f"DELETE {ONE}": Act("checkpoint_delete"),
    f"PUT {ONE}/ttl": Act("checkpoint_set_ttl", {"ttl_seconds": 7200}),
    f"POST {ONE}/publish": Act("checkpoint_publish"),
    f"DELETE {ONE}/publish": Act("checkpoint_unpublish", after=f"POST {ONE}/publish"),
    "POST /api/v1/copy_weights": Act(
        "checkpoint_copy", {"source_path": "{path}", "destination_project_id": "alpha"}
    ),
}
"""What a tenant's own keys destroy, share or give away."""


@dataclass(frozen=True)
class Deployment:
    """The application on a real store, with a tenant that has something of everything."""

    http: httpx.AsyncClient
    store: Store
    ids: Mapping[str, str]
    api_key: str
    admin_key: str

    async def events(self) -> list[tuple[str, Any]]:
        answer = await self.http.get(
            "/admin/v1/audit", params={"limit": 1000}, headers={"X-API-Key": self.admin_key}
        )
        assert answer.status_code == 200
        return [(row["event"], row["key_id"]) for row in answer.json()["entries"]]

    async def act(self, route: str, act: Act, secret: str) -> httpx.Response:
        method, path = self.filled(route).split(" ", 1)
        body, query = (
            {name: self.filled(value) for name, value in each.items()}
            for each in (act.body, act.query)
        )
        return await self.http.request(
            method, path, json=body, params=query, headers={"X-API-Key": secret}
        )

    def filled(self, value: Any) -> Any:
        return value.format(**self.ids) if isinstance(value, str) else value


@pytest.fixture
async def real_store(redis_url: str, clock: ManualClock) -> AsyncGenerator[Store, None]:
    opened = await Store.open(redis_url, f"test-{uuid.uuid4().hex[:12]}", clock)
    yield opened
    await opened.close()


@pytest.fixture
def app(real_store: Store, storage: StorageDouble, clock: ManualClock) -> FastAPI:
    return create_app(Settings(poll_hold_s=0.0), real_store, storage, clock)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def deployment(
    app: FastAPI, real_store: Store, clock: ManualClock
) -> AsyncGenerator[Deployment, None]:
    store = real_store
    tenant = await store.tenants.create("lab")
    operators = await store.tenants.create("operators")
    api_key, record = await store.api_keys.create(tenant.tenant_id, "laptop", TENANT_SCOPES)
    admin_key, _ = await store.api_keys.create(
        operators.tenant_id, "admin", frozenset({Scope.ADMIN})
    )
    now_ms = clock.now_ms()
    await store.sessions.create(Session(SESSION_ID, tenant.tenant_id, now_ms, now_ms))
    await submit(
        store,
        submission(OperationKind.CREATE_MODEL, 0, tenant_id=tenant.tenant_id),
        submission(OperationKind.OPTIM_STEP, 1, tenant_id=tenant.tenant_id),
    )
    await add_worker(store, "worker-1")
    await store.sessions.finish(SESSION_ID, "success")
    path = CheckpointPath(model_id(), CheckpointKind.SAMPLER, "final")
    await store.checkpoints.put(record_of(tenant.tenant_id, path))
    known = {
        "tenant_id": tenant.tenant_id,
        "key_id": record.key_id,
        "session_id": SESSION_ID,
        "run": model_id(),
        "model_id": model_id(),
        "worker_id": "worker-1",
        "kind": path.kind,
        "name": path.name,
        "path": str(path),
    }
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as http,
    ):
        yield Deployment(http, store, known, api_key, admin_key)


def record_of(tenant_id: str, path: CheckpointPath) -> Checkpoint:
    return checkpoint(path.name, tenant_id=tenant_id, path=str(path), kind=path.kind)


def test_every_changing_route_of_administration_is_walked(app: FastAPI) -> None:
    changing = {
        f"{method} {path}"
        for method, path in methods_and_paths(app)
        if path.startswith("/admin/") and method in CHANGING
    }

    assert changing == ADMIN_ACTS.keys()


@pytest.mark.parametrize("route", ADMIN_ACTS)
async def test_what_an_administrator_changes_is_noted_once(
    deployment: Deployment, route: str
) -> None:
    await _check(deployment, route, ADMIN_ACTS[route], deployment.admin_key)


@pytest.mark.parametrize("route", TENANT_ACTS)
async def test_what_a_tenant_destroys_or_shares_is_noted_once(
    deployment: Deployment, route: str
) -> None:
    await _check(deployment, route, TENANT_ACTS[route], deployment.api_key)


async def _check(deployment: Deployment, route: str, act: Act, secret: str) -> None:
    if act.after:
        await deployment.act(act.after, Act(""), secret)
    before = await deployment.events()
    caller = await deployment.store.api_keys.of_secret(secret)
    assert caller is not None

    answer = await deployment.act(route, act, secret)

    assert answer.status_code == 200, answer.text
    new = await deployment.events()
    for each in before:
        new.remove(each)
    assert new.count((act.event, caller.key.key_id)) == 1


async def test_deleting_a_tenant_takes_its_keys_and_checkpoints_and_leaves_its_books(
    deployment: Deployment,
) -> None:
    tenant_id = deployment.ids["tenant_id"]
    await deployment.act("DELETE /admin/v1/tenants/{tenant_id}", Act(""), deployment.admin_key)

    assert (await deployment.store.checkpoints.list(tenant_id, 0, 10))[1] == 0
    answer = await deployment.http.get(
        "/api/v1/sessions", headers={"X-API-Key": deployment.api_key}
    )
    assert answer.status_code == 401
    answer = await deployment.http.get(
        "/admin/v1/audit",
        params={"tenant_id": tenant_id},
        headers={"X-API-Key": deployment.admin_key},
    )
    events = [row["event"] for row in answer.json()["entries"]]
    assert {"organization_delete", "organization_key_revoke", "checkpoint_delete"} <= set(events)
    assert [each.tenant_id for each in await deployment.store.tenants.unpurged()] == [tenant_id]


async def test_a_tenants_keys_and_the_entries_tell_nobody_a_key(deployment: Deployment) -> None:
    answer = await deployment.http.get(
        "/admin/v1/audit", headers={"X-API-Key": deployment.admin_key}
    )

    assert deployment.api_key not in answer.text
    assert deployment.admin_key not in answer.text
