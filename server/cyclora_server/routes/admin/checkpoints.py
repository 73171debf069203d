"""Checkpoints of all tenants, for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_core.ids import CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_server import access
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/admin/v1/checkpoints", tags=["administration"], dependencies=needs_key)

MAX_PAGE = 1000
Text = Annotated[str | None, Query(min_length=1, max_length=300)]


@router.get(
    "",
    summary="Find checkpoints, whoever's they are",
    description="Those with a name, newest first of each tenant; `num` and `num_bytes` are of all "
    "that were found. One that has expired is found until a sweep has come by.",
)
async def find_checkpoints(
    services: ServicesDep,
    tenant_id: Text = None,
    model_id: Text = None,
    base_model: Text = None,
    name: Annotated[str | None, Query(max_length=300, description="A part of its name.")] = None,
    created_before: AwareDatetime | None = None,
    created_after: AwareDatetime | None = None,
    min_bytes: Annotated[int, Query(ge=0)] = 0,
    is_expired: bool | None = None,
    is_public: bool | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Json:
    now_ms = services.clock.now_ms()
    found = [
        each
        for each in await services.store.inventory.checkpoints(tenant_id)
        if model_id in (None, each.model_id)
        and base_model in (None, each.base_model)
        and (name is None or name in each.name)
        and (created_before is None or each.created_at_ms < _ms(created_before))
        and (created_after is None or each.created_at_ms >= _ms(created_after))
        and each.num_bytes >= min_bytes
        and is_expired in (None, each.has_expired(now_ms))
        and is_public in (None, each.is_public)
    ]
    return {
        "checkpoints": [_checkpoint(each, now_ms) for each in found[offset : offset + limit]],
        "num": len(found),
        "num_bytes": sum(each.num_bytes for each in found),
    }


@router.delete("", summary="Delete a checkpoint by its path")
async def delete_checkpoint(
    identity: IdentityDep,
    services: ServicesDep,
    path: Annotated[str, Query(max_length=500, description="As `tinker://...`.")],
) -> Json:
    parsed = CheckpointPath.parse(path)
    if await services.store.checkpoints.get(str(parsed)) is None:
        raise NotFound(f"checkpoint {path!r} does not exist")
    await access.discard_checkpoint(services, parsed, identity.key.key_id)
    return {}


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _checkpoint(each: Checkpoint, now_ms: int) -> dict[str, Any]:
    expires_at_ms = each.expires_at_ms
    return {
        "path": each.path,
        "tenant_id": each.tenant_id,
        "model_id": each.model_id,
        "kind": each.kind,
        "name": each.name,
        "base_model": each.base_model,
        "num_bytes": each.num_bytes,
        "created_at": as_datetime(each.created_at_ms).isoformat(),
        "expires_at": None if expires_at_ms is None else as_datetime(expires_at_ms).isoformat(),
        "is_expired": each.has_expired(now_ms),
        "is_public": each.is_public,
    }
