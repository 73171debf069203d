from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest
from tinker import types
from tinker.types.current_checkpoint_storage_usage_response import (
    CurrentCheckpointStorageUsageResponse,
)

from cyclora_core import ids
from cyclora_core.usage import Charge, Meter, Metered
from server.doubles.builders import (
    BASE,
    MODEL,
    SESSION,
    STRANGER_KEY,
    TENANT,
    checkpoint,
    model_record,
)
from server.doubles.store import StoreDouble

WINDOW = {"starting_on": "1970-01-01T00:00:00Z", "ending_before": "1970-01-02T00:00:00Z"}


async def usage(client: httpx.AsyncClient, **changes: str) -> types.BillingUsageResponse:
    answer = await client.get("/api/v1/billing/usage/events", params={**WINDOW, **changes})
    return types.BillingUsageResponse.model_validate(answer.json())


def metered(meter: Meter, amount: int, hour: int = 0) -> Metered:
    return Metered(hour, meter, Charge(BASE.name, SESSION), amount)


async def test_every_meter_is_an_event_the_sdk_understands(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    amounts = {meter: number for number, meter in enumerate(Meter, 1)}
    amounts[Meter.STORED] = 18 * 10**11
    store.metering.metered = [metered(meter, amount) for meter, amount in amounts.items()]

    found = await usage(client)

    infos = [each.event_info.model_dump() for each in found.data]
    assert infos == [
        {"type": "sampling_sample", "token_count": amounts[Meter.SAMPLED]},
        {"type": "sampling_prefill", "cached": True, "token_count": 3},
        {"type": "sampling_prefill", "cached": False, "token_count": 2},
        {"type": "training", "token_count": 1},
        {"type": "checkpoint", "count": 5},
        {"type": "storage", "free": False, "gigabyte_hours": 0.5},
    ]


async def test_an_event_says_when_for_whom_and_of_what(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.metering.metered = [metered(Meter.TRAINING, 7, hour=3)]
    session = store.sessions.records[SESSION]
    store.sessions.records[SESSION] = dataclasses.replace(
        session, user_metadata={"run": "7"}, project_id="paper"
    )

    found = await usage(client)

    [event] = found.data
    assert event.bucket_start.isoformat() == "1970-01-01T03:00:00+00:00"
    assert event.bucket_end.isoformat() == "1970-01-01T04:00:00+00:00"
    assert (event.base_model, event.session_id) == (BASE.name, SESSION)
    assert (event.project_id, event.user_id) == ("paper", f"tml:organization_user:{TENANT}")
    assert event.estimated_cost_usd is None
    assert found.sessions[SESSION].user_metadata == {"run": "7"}


async def test_old_sdks_find_no_field_that_they_refuse(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """Up to 0.25 they forbid unknown ones inside event_info."""
    store.metering.metered = [metered(meter, 1) for meter in Meter]
    known = {"type", "token_count", "cached", "count", "gigabyte_hours"}

    answer = await client.get("/api/v1/billing/usage/events", params=WINDOW)

    assert {name for row in answer.json()["data"] for name in row["event_info"]} == known


async def test_nobody_sees_what_another_tenant_used(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.metering.metered = [metered(Meter.TRAINING, 7)]
    store.checkpoints.put(checkpoint())
    client.headers["X-API-Key"] = STRANGER_KEY

    assert (await usage(client)).data == []
    answer = await client.get("/api/v1/billing/usage/checkpoints/current")
    assert answer.json() == {"data": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"starting_on": "1970-01-01T00:00:01Z"},
        {"ending_before": "1970-01-01T12:30:00Z"},
        {"ending_before": "1970-01-01T00:00:00Z"},
        {"ending_before": "1970-01-16T00:00:00Z"},
        {"starting_on": "1970-01-02T00:00:00Z", "ending_before": "1970-01-03T00:00:00Z"},
        {"starting_on": "1969-12-31T23:00:00Z"},
        {"starting_on": "1970-01-01T00:00:00"},
        {"starting_on": "soon"},
    ],
)
async def test_a_window_that_cannot_be_is_refused(
    client: httpx.AsyncClient, changes: dict[str, str]
) -> None:
    answer = await client.get("/api/v1/billing/usage/events", params={**WINDOW, **changes})

    assert answer.status_code == 422


async def current(client: httpx.AsyncClient, **params: Any) -> list[tuple[str | None, int, int]]:
    answer = await client.get("/api/v1/billing/usage/checkpoints/current", params=params)
    found = CurrentCheckpointStorageUsageResponse.model_validate(answer.json())
    return [(each.project_id, each.checkpoint_count, each.size_bytes) for each in found.data]


async def test_what_is_stored_now_is_told_by_project(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    other = ids.model_id(ids.new_session_id(), 0)
    store.models.records[other] = model_record(model_id=other, project_id="paper")
    store.checkpoints.put(checkpoint("a", num_bytes=10))
    store.checkpoints.put(checkpoint("b", num_bytes=20))
    path = f"tinker://{other}/weights/c"
    store.checkpoints.put(checkpoint("c", path=path, model_id=other, num_bytes=40))

    assert await current(client) == [("default", 2, 30), ("paper", 1, 40)]
    assert await current(client, project_id="paper") == [("paper", 1, 40)]
    assert await current(client, project_id="none") == []


async def test_a_checkpoint_moves_between_projects_with_its_session(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint("a", num_bytes=10))
    assert MODEL in store.models.records

    await client.put(f"/api/v1/sessions/{SESSION}/project", json={"project_id": "paper"})

    assert await current(client) == [("paper", 1, 10)]
