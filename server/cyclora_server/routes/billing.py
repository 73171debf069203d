"""What a tenant used: tokens, checkpoints and storage, by hour, as they were metered."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from cyclora_core.clock import as_datetime
from cyclora_core.records import Checkpoint, Session
from cyclora_core.store.metering import HOUR_MS, METERED_KEPT_S, hour_of
from cyclora_core.usage import Meter, Metered
from cyclora_server import projects
from cyclora_server.auth import IdentityDep, needs_key, user_urn
from cyclora_server.problems import InvalidBody
from cyclora_server.services import Json, Services, ServicesDep

router = APIRouter(prefix="/api/v1/billing/usage", tags=["billing"], dependencies=needs_key)

MAX_HOURS = 14 * 24
_GIGABYTE = 10**9
_AT_ONCE = 1000


@router.get(
    "/events",
    summary="Usage by hour, kind, base model and session",
    description="Both times are full hours, UTC; at most 14 days apart. Only what was metered, and "
    f"no prices. Hours are kept for {METERED_KEPT_S // 86400} days; the present one counts as far "
    "as it has come.",
)
async def get_usage_events(
    identity: IdentityDep,
    services: ServicesDep,
    starting_on: Annotated[AwareDatetime, Query()],
    ending_before: Annotated[AwareDatetime, Query()],
) -> Json:
    now_ms = services.clock.now_ms()
    first, before = _window(starting_on, ending_before, now_ms)
    metering, tenant_id = services.store.metering, identity.tenant_id
    buckets: dict[_Bucket, int] = defaultdict(int)
    for each in await metering.usage(tenant_id, first, before, now_ms):
        buckets[_bucket_of(each)] += each.amount
    session_ids = projects.unique(each.session_id for each in buckets if each.session_id)
    sessions = await services.store.sessions.get_many(session_ids)
    events = [
        _event(bucket, amount, tenant_id, sessions.get(bucket.session_id))
        for bucket, amount in buckets.items()
    ]
    # As the SDK says: by hour, most tokens first.
    events.sort(
        key=lambda event: (event["bucket_start"], -event["event_info"].get("token_count", 0))
    )
    return {
        "data": events,
        "sessions": {
            session_id: {"user_metadata": dict(session.user_metadata)}
            for session_id, session in sessions.items()
        },
    }


def _window(starting_on: datetime, ending_before: datetime, now_ms: int) -> tuple[int, int]:
    """The hours asked for, since the epoch.

    Raises:
        InvalidBody: they are no full hours, too many, or begin in the future.
    """
    first_s, before_s = starting_on.timestamp(), ending_before.timestamp()
    if first_s % 3600 or before_s % 3600:
        raise InvalidBody("starting_on and ending_before must be full hours, UTC")
    first, before = int(first_s // 3600), int(before_s // 3600)
    if not 0 < before - first <= MAX_HOURS:
        raise InvalidBody(
            f"ending_before is {before - first} hours after starting_on; expected 1 to {MAX_HOURS}"
        )
    if not 0 <= first <= hour_of(now_ms):
        raise InvalidBody(
            f"starting_on: {starting_on.isoformat()} is in the future, or before 1970"
        )
    return first, before


class _Bucket(NamedTuple):
    """What one event is about; as the SDK wants it, storage is told for the tenant as a whole."""

    hour: int
    meter: Meter
    base_model: str = ""
    session_id: str = ""
    project_id: str = ""


def _bucket_of(used: Metered) -> _Bucket:
    if used.meter is Meter.STORED:
        return _Bucket(used.hour, used.meter)
    charge = used.charge
    return _Bucket(used.hour, used.meter, charge.base_model, charge.session_id, charge.project_id)


def _event(bucket: _Bucket, amount: int, tenant_id: str, session: Session | None) -> dict[str, Any]:
    start, end = (
        as_datetime(each * HOUR_MS).isoformat() for each in (bucket.hour, bucket.hour + 1)
    )
    event: dict[str, Any] = {
        "bucket_start": start,
        "bucket_end": end,
        "user_id": user_urn(tenant_id),
        "event_info": _info(bucket.meter, amount),
    }
    if bucket.meter is not Meter.STORED:
        event |= {
            "base_model": bucket.base_model,
            "session_id": bucket.session_id,
            "project_id": bucket.project_id or projects.of_session(session),
        }
    return event


def _info(meter: Meter, amount: int) -> dict[str, Any]:
    """Exactly the fields of each kind: SDKs up to 0.25 refuse any other."""
    match meter:
        case Meter.TRAINING:
            return {"type": "training", "token_count": amount}
        case Meter.PREFILL | Meter.CACHED_PREFILL:
            is_cached = meter is Meter.CACHED_PREFILL
            return {"type": "sampling_prefill", "cached": is_cached, "token_count": amount}
        case Meter.SAMPLED:
            return {"type": "sampling_sample", "token_count": amount}
        case Meter.CHECKPOINT:
            return {"type": "checkpoint", "count": amount}
        case Meter.STORED:
            return {"type": "storage", "gigabyte_hours": amount / 3600 / _GIGABYTE}


@router.get("/checkpoints/current", summary="Named checkpoints that are stored now, by project")
async def get_current_storage(
    identity: IdentityDep,
    services: ServicesDep,
    project_id: Annotated[str | None, Query(max_length=128)] = None,
) -> Json:
    checkpoints = await _all_checkpoints(services, identity.tenant_id)
    project_of = await projects.of_model_ids(services, (each.model_id for each in checkpoints))
    by_project: dict[str, list[int]] = defaultdict(list)
    for checkpoint in checkpoints:
        project = project_of.get(checkpoint.model_id, projects.DEFAULT_PROJECT)
        by_project[project].append(checkpoint.num_bytes)
    return {
        "data": [
            {
                "project_id": project,
                "org_user_urn": user_urn(identity.tenant_id),
                "checkpoint_count": len(sizes),
                "size_bytes": sum(sizes),
                "size_gigabytes": sum(sizes) / _GIGABYTE,
            }
            for project, sizes in sorted(by_project.items())
            if project_id in (None, project)
        ]
    }


async def _all_checkpoints(services: Services, tenant_id: str) -> list[Checkpoint]:
    found: dict[str, Checkpoint] = {}
    offset = 0
    while True:
        page, total = await services.store.checkpoints.list(tenant_id, offset, _AT_ONCE)
        # By path: one that was saved in between moves the others into the next page.
        found |= {each.path: each for each in page}
        offset += _AT_ONCE
        if offset >= total:
            return list(found.values())
