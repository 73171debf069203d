from __future__ import annotations

import httpx
import pytest
from tinker.types import AuditLogResponse

from cyclora_core.accounts import AuditEntry
from server.doubles.builders import ADMIN_KEY, STRANGER, TENANT
from server.doubles.store import StoreDouble

DAY_MS = 86_400_000


def entry(event: str, at_ms: int = 5000, **details: str) -> AuditEntry:
    return AuditEntry(event, at_ms, details, event)


@pytest.fixture(autouse=True)
def entries(store: StoreDouble) -> None:
    store.audit.entries = [
        (TENANT, entry("checkpoint_delete", tinker_path="tinker://x", model_id="m", key_id="k")),
        (TENANT, entry("project_assign_session", 6000)),
        (TENANT, entry("organization_key_create", 7000)),
        (TENANT, entry("checkpoint_create", DAY_MS + 1)),
        (STRANGER, entry("checkpoint_publish", 5500)),
    ]


async def log(client: httpx.AsyncClient, key: str | None = None, **params: str) -> list[str]:
    headers = {"X-API-Key": key} if key else {}
    answer = await client.get("/api/v1/audit", params=params, headers=headers)
    response = AuditLogResponse.model_validate(answer.json())
    return [each.event for each in response.entries]


async def test_today_is_shown_in_order(client: httpx.AsyncClient) -> None:
    assert await log(client) == [
        "checkpoint_delete",
        "project_assign_session",
        "organization_key_create",
    ]


@pytest.mark.parametrize(
    ("event_type", "expected"),
    [
        ("checkpoints", ["checkpoint_delete"]),
        ("projects", ["project_assign_session"]),
        ("teams", []),
        ("organizations", ["organization_key_create"]),
    ],
)
async def test_one_resource_is_shown(
    client: httpx.AsyncClient, event_type: str, expected: list[str]
) -> None:
    assert await log(client, event_type=event_type) == expected


async def test_another_day_is_shown(client: httpx.AsyncClient) -> None:
    assert await log(client, day="1970-01-02") == ["checkpoint_create"]
    assert await log(client, day="1970-01-03") == []


async def test_an_entry_says_what_it_was_about(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/audit")

    first = AuditLogResponse.model_validate(answer.json()).entries[0]
    assert first.timestamp.timestamp() == 5.0
    assert first.timestamp.tzinfo is not None
    assert (first.tinker_path, first.model_id) == ("tinker://x", "m")
    assert first.event_details["key_id"] == "k"


async def test_an_administrator_sees_every_tenant(client: httpx.AsyncClient) -> None:
    events = await log(client, ADMIN_KEY, event_type="checkpoints")

    assert events == ["checkpoint_delete", "checkpoint_publish"]


@pytest.mark.parametrize(
    "params",
    [
        {"day": "yesterday"},
        {"day": "2026-02-30"},
        {"day": "9999-12-31"},
        {"day": "0001-01-01"},
        {"event_type": "x"},
    ],
)
async def test_a_day_or_resource_that_does_not_exist_is_refused(
    client: httpx.AsyncClient, params: dict[str, str]
) -> None:
    assert (await client.get("/api/v1/audit", params=params)).status_code == 422
