"""Reading what was used out of the store, and answering it as JSON or CSV."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, Query, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import AwareDatetime

from cyclora_core.clock import as_datetime
from cyclora_core.store.metering import HOUR_MS, METERED_KEPT_S, hour_of
from cyclora_core.usage import (
    HOUR_S,
    GroupBy,
    Metered,
    UsageFilter,
    UsageSum,
    columns_of,
    summed,
)
from cyclora_server.problems import InvalidBody
from cyclora_server.services import Services, ServicesDep

DESCRIPTION = (
    "Sums of tokens trained, prefilled, found cached and sampled, of checkpoints saved and of "
    "byte-seconds stored. Every amount is charged to exactly one project, run and API key, as they "
    "were when it was counted, so the sums over any partition agree. Hours are UTC and kept for "
    f"{METERED_KEPT_S // 86400} days; the present one counts as far as it has come."
)
MAX_GROUPS = 100_000
_DEFAULT_DAYS = 31
_MAX_CHOSEN = 100
_MAX_CHARS = 300


class Format(StrEnum):
    """How sums are answered."""

    JSON = "json"
    CSV = "csv"


Chosen = Annotated[
    list[Annotated[str, Query(max_length=_MAX_CHARS)]], Query(max_length=_MAX_CHOSEN)
]


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What is asked for, checked."""

    by: Sequence[GroupBy]
    chosen: UsageFilter
    from_hour: int
    before_hour: int
    now_ms: int
    format: Format


def usage_query(
    services: ServicesDep,
    group_by: Annotated[list[GroupBy], Query(max_length=len(GroupBy))] = [],  # noqa: B006
    project: Chosen = [],  # noqa: B006 - FastAPI reads the default and never hands it out
    key: Chosen = [],  # noqa: B006
    run: Chosen = [],  # noqa: B006
    base_model: Chosen = [],  # noqa: B006
    starting_on: Annotated[
        AwareDatetime | None,
        Query(description=f"A full hour; by default {_DEFAULT_DAYS} days before the end."),
    ] = None,
    ending_before: Annotated[
        AwareDatetime | None, Query(description="A full hour; by default the end of this one.")
    ] = None,
    format: Format = Format.JSON,
) -> UsageQuery:
    """The query of every usage route.

    Raises:
        InvalidBody: the times are no full hours, in the wrong order or out of range, or a group is
            named twice.
    """
    if len(set(group_by)) != len(group_by):
        raise InvalidBody(f"group_by: {', '.join(group_by)} names one twice")
    now_ms = services.clock.now_ms()
    before_hour = (
        hour_of(now_ms) + 1 if ending_before is None else _full_hour("ending_before", ending_before)
    )
    from_hour = (
        max(0, before_hour - _DEFAULT_DAYS * 24)
        if starting_on is None
        else _full_hour("starting_on", starting_on)
    )
    if not from_hour < before_hour:
        raise InvalidBody("starting_on must be before ending_before")
    chosen = UsageFilter(frozenset(project), frozenset(key), frozenset(run), frozenset(base_model))
    return UsageQuery(group_by, chosen, from_hour, before_hour, now_ms, format)


UsageQueryDep = Annotated[UsageQuery, Depends(usage_query)]


def _full_hour(name: str, at: datetime) -> int:
    at_s = at.timestamp()
    if at_s % HOUR_S or at_s < 0:
        raise InvalidBody(f"{name}: {at.isoformat()} is no full hour, UTC, since 1970")
    return int(at_s // HOUR_S)


async def answer(services: Services, query: UsageQuery, tenant_ids: Sequence[str]) -> Response:
    """The sums of what these tenants used.

    Raises:
        InvalidBody: there are more groups than one answer may have.
    """
    metering = services.store.metering
    found: list[tuple[str, Metered]] = []
    for tenant_id in tenant_ids:
        rows = await metering.usage(tenant_id, query.from_hour, query.before_hour, query.now_ms)
        found += [(tenant_id, row) for row in rows]
    # Apart: a month of a large deployment takes longer than others should wait.
    sums = await asyncio.to_thread(summed, found, query.by, query.chosen)
    if len(sums) > MAX_GROUPS:
        raise InvalidBody(
            f"that would be {len(sums)} groups; at most {MAX_GROUPS}: ask for a shorter time"
        )
    if query.format is Format.CSV:
        return PlainTextResponse(_csv(sums, query.by), media_type="text/csv")
    start, end = (
        as_datetime(hour * HOUR_MS).isoformat() for hour in (query.from_hour, query.before_hour)
    )
    return JSONResponse(
        {"starting_on": start, "ending_before": end, "usage": [_row(each) for each in sums]}
    )


def _row(each: UsageSum) -> dict[str, Any]:
    return {"group": dict(each.group), "amounts": dict(each.amounts)}


def _csv(sums: Sequence[UsageSum], by: Sequence[GroupBy]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*by, *columns_of(by)])
    for each in sums:
        writer.writerow([*map(_inert, each.group.values()), *each.amounts.values()])
    return text.getvalue()


def _inert(value: str) -> str:
    """A name that no spreadsheet takes for a formula: projects are named by tenants."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
