from __future__ import annotations

from typing import Any

import httpx
import pytest

from cyclora_core.usage import Charge, Meter, Metered
from server.doubles.builders import ADMIN_KEY, BASE, MODEL, SESSION, STRANGER_KEY, TENANT
from server.doubles.store import StoreDouble

DAY = {"starting_on": "1970-01-01T00:00:00Z", "ending_before": "1970-01-02T00:00:00Z"}
PAPER = Charge(BASE.name, SESSION, "paper", MODEL, "key-a")
FORMULA = Charge(BASE.name, SESSION, "=1+1", MODEL, "key-a")


async def asked(client: httpx.AsyncClient, route: str, **query: Any) -> Any:
    answer = await client.get(route, params={**DAY, **query})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture(autouse=True)
def metered(store: StoreDouble) -> None:
    store.metering.metered = [
        Metered(1, Meter.TRAINING, PAPER, 7),
        Metered(2, Meter.TRAINING, PAPER, 8),
        Metered(2, Meter.STORED, FORMULA, 9),
    ]


async def test_a_tenant_sees_its_own_usage_by_what_it_asks_for(client: httpx.AsyncClient) -> None:
    answer = await asked(client, "/api/v1/usage", group_by=["project", "day"])

    first, second = answer.json()["usage"]
    assert first["group"] == {"project": "=1+1", "day": "1970-01-01"}
    assert first["amounts"]["stored_byte_seconds"] == 9
    assert second["group"] == {"project": "paper", "day": "1970-01-01"}
    assert second["amounts"] == {
        "trained_tokens": 15,
        "prefilled_tokens": 0,
        "cached_tokens": 0,
        "sampled_tokens": 0,
        "num_checkpoints": 0,
        "stored_byte_seconds": 0,
    }
    assert answer.json()["starting_on"] == "1970-01-01T00:00:00+00:00"


async def test_only_the_hours_asked_for_count(client: httpx.AsyncClient) -> None:
    query = {"starting_on": "1970-01-01T02:00:00Z", "group_by": "meter"}
    answer = await asked(client, "/api/v1/usage", **query)

    assert [row["amounts"] for row in answer.json()["usage"]] == [{"amount": 9}, {"amount": 8}]


async def test_a_tenant_sees_nothing_of_another(client: httpx.AsyncClient) -> None:
    client.headers["X-API-Key"] = STRANGER_KEY

    answer = await asked(client, "/api/v1/usage", group_by="tenant", tenant=TENANT)

    assert answer.json()["usage"] == []


async def test_an_administrator_sees_all_tenants_or_those_named(client: httpx.AsyncClient) -> None:
    client.headers["X-API-Key"] = ADMIN_KEY

    everyone = await asked(client, "/admin/v1/usage", group_by="tenant")
    nobody = await asked(client, "/admin/v1/usage", group_by="tenant", tenant="tenant-b")

    assert [row["group"] for row in everyone.json()["usage"]] == [{"tenant": TENANT}]
    assert nobody.json()["usage"] == []


async def test_what_a_deleted_tenant_used_stays_in_the_sum_of_all(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    client.headers["X-API-Key"] = ADMIN_KEY
    before = await asked(client, "/admin/v1/usage")

    store.tenants.change(TENANT, deleted_at_ms=2000)

    assert (await asked(client, "/admin/v1/usage")).json() == before.json()


async def test_a_tenants_key_is_no_administrators(client: httpx.AsyncClient) -> None:
    assert (await client.get("/admin/v1/usage")).status_code == 403


async def test_csv_has_a_header_and_no_formulas(client: httpx.AsyncClient) -> None:
    answer = await asked(client, "/api/v1/usage", group_by=["project", "meter"], format="csv")

    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text == "project,meter,amount\n'=1+1,stored,9\npaper,training,15\n"


@pytest.mark.parametrize(
    "query",
    [
        {"starting_on": "1970-01-01T00:30:00Z"},
        {"starting_on": "1970-01-03T00:00:00Z"},
        {"starting_on": "1969-12-31T00:00:00Z"},
        {"starting_on": "1970-01-01T00:00:00"},
        {"group_by": ["day", "day"]},
        {"group_by": "color"},
        {"format": "xml"},
    ],
)
async def test_what_cannot_be_summed_is_refused(
    client: httpx.AsyncClient, query: dict[str, Any]
) -> None:
    assert (await client.get("/api/v1/usage", params={**DAY, **query})).status_code == 422
