"""What tenants are told of their quotas, and how administrators set them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.accounts import Quotas
from cyclora_core.clock import ManualClock
from cyclora_core.errors import OverBudget, OverQuota
from cyclora_core.quotas import QuotaUse
from cyclora_core.records import Submission
from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from server.doubles.builders import ADMIN_KEY, TENANT
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble
from server.routes.test_sampling import sdk_sample

ADMIN = {"X-API-Key": ADMIN_KEY}
ROUTE = f"/admin/v1/tenants/{TENANT}/quotas"


async def test_a_tenant_sees_its_limits_what_it_uses_and_when_budgets_renew(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.tenants.change(TENANT, quotas=Quotas(max_rank=16, tokens_per_minute=600))
    store.quotas.uses[TENANT] = QuotaUse(samples=3, tokens_today=7, startable_tokens=-100.4)

    found = (await client.get("/api/v1/quotas")).json()

    assert found["tenant_id"] == TENANT
    assert found["quotas"]["max_rank"] == 16
    assert found["quotas"]["max_adapters"] is None
    assert (found["use"]["samples"], found["use"]["tokens_today"]) == (3, 7)
    assert found["use"]["startable_tokens"] == -100
    assert found["rate_pause_s"] == 10.0
    assert found["day_renews_at"].endswith("T00:00:00+00:00")
    assert found["month_renews_at"].endswith("-01T00:00:00+00:00")


async def test_an_administrator_changes_what_is_given_and_leaves_the_rest(
    client: httpx.AsyncClient,
) -> None:
    for body in ({"max_rank": 16, "tokens_per_day": 100}, {"max_rank": None, "max_adapters": 2}):
        answer = await client.put(ROUTE, json=body, headers=ADMIN)
        assert answer.status_code == 200

    found = (await client.get(ROUTE, headers=ADMIN)).json()["quotas"]

    assert {name: limit for name, limit in found.items() if limit is not None} == {
        "tokens_per_day": 100,
        "max_adapters": 2,
    }


@pytest.mark.parametrize(
    "body", [{"max_rank": 0}, {"tokens_per_minute": 0}, {"max_adapters": -1}, {"rank": 3}]
)
async def test_a_quota_that_makes_no_sense_is_refused(
    client: httpx.AsyncClient, body: dict[str, int]
) -> None:
    answer = await client.put(ROUTE, json=body, headers=ADMIN)

    assert answer.status_code == 422
    assert next(iter(body)) in answer.json()["detail"]


async def test_quotas_of_tenants_are_administrators_business(client: httpx.AsyncClient) -> None:
    assert (await client.get(ROUTE)).status_code == 403
    assert (await client.put(ROUTE, json={"max_rank": 9})).status_code == 403
    nobody = await client.get("/admin/v1/tenants/nobody/quotas", headers=ADMIN)
    assert nobody.status_code == 404


async def test_a_new_tenant_gets_the_quotas_of_the_settings(
    store: StoreDouble, storage: StorageDouble, clock: ManualClock
) -> None:
    settings = Settings(poll_hold_s=0.0, new_tenant_quotas=Quotas(max_rank=32))
    app: FastAPI = create_app(settings, store, storage, clock)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server", headers=ADMIN
    ) as admin:
        made = (await admin.post("/admin/v1/tenants", json={"name": "lab"})).json()
        found = (await admin.get(f"/admin/v1/tenants/{made['tenant_id']}/quotas")).json()

    assert found["quotas"]["max_rank"] == 32


def test_new_tenants_quotas_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLORA_NEW_TENANT_QUOTAS", '{"max_rank": 32, "tokens_per_day": 1000}')

    assert Settings().new_tenant_quotas == Quotas(max_rank=32, tokens_per_day=1000)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [(OverBudget("paused: ..."), 402, None), (OverQuota("3 samples"), 429, "1")],
)
async def test_what_is_beyond_a_quota_gets_the_code_that_the_sdk_waits_at(
    client: httpx.AsyncClient,
    store: StoreDouble,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    retry_after: str | None,
) -> None:
    async def refuse(submission: Submission) -> Any:
        raise error

    monkeypatch.setattr(store.operations, "submit", refuse)

    answer = await client.post("/api/v1/asample", json=sdk_sample())

    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == retry_after
    assert answer.json()["detail"] == str(error)


async def test_who_waits_for_its_rate_is_told_so_and_for_how_long(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.tenants.change(TENANT, quotas=Quotas(tokens_per_minute=600))
    promise = (await client.post("/api/v1/asample", json=sdk_sample())).json()["request_id"]
    store.quotas.pause_s = 11.2

    answer = await client.post("/api/v1/retrieve_future", json={"request_id": promise})

    assert answer.status_code == 408
    assert answer.json()["queue_state"] == "paused_rate_limit"
    assert "600 tokens per minute" in answer.json()["queue_state_reason"]
    assert "12 s" in answer.json()["queue_state_reason"]


async def test_a_sample_counts_its_sequences(client: httpx.AsyncClient, store: StoreDouble) -> None:
    body = sdk_sample() | {"num_samples": 5}
    request_id = (await client.post("/api/v1/asample", json=body)).json()["request_id"]

    assert store.submitted(request_id).num_samples == 5
