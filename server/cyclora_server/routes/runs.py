"""Training runs, as users list them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cyclora_core.clock import as_datetime
from cyclora_core.ids import CheckpointKind
from cyclora_core.records import Checkpoint
from cyclora_core.types import ModelRecord
from cyclora_server import access
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.routes.checkpoints import Limit, Offset, cursor, describe
from cyclora_server.services import Json, Services, ServicesDep

router = APIRouter(prefix="/api/v1", tags=["training runs"], dependencies=needs_key)


class AccessScope(StrEnum):
    """Whose objects a client asks for."""

    OWNED = "owned"
    """The tenant's own."""
    ACCESSIBLE = "accessible"
    """Those of others too, as far as they are published."""


Scope = Annotated[AccessScope, Query(alias="access_scope")]


@router.get("/training_runs", summary="The tenant's training runs, newest first")
async def list_training_runs(
    identity: IdentityDep,
    services: ServicesDep,
    limit: Limit = 20,
    offset: Offset = 0,
    _scope: Scope = AccessScope.OWNED,
) -> Json:
    models, total = await services.store.models.list(identity.tenant_id, offset, limit)
    runs = await asyncio.gather(*(_own_run(services, model) for model in models))
    return {"training_runs": runs, "cursor": cursor(offset, limit, total)}


@router.get(
    "/training_runs/{run}",
    summary="One training run",
    description="With `access_scope=accessible`, another tenant's run is shown as far as its "
    "published checkpoints tell it.",
)
async def get_training_run(
    run: str, identity: IdentityDep, services: ServicesDep, scope: Scope = AccessScope.OWNED
) -> Json:
    if scope is AccessScope.OWNED:
        return await _own_run(services, await access.owned_model(services, identity.tenant_id, run))
    model, checkpoints = await access.readable_run(services, identity.tenant_id, run)
    if model.tenant_id == identity.tenant_id:
        return _describe_run(model, checkpoints, model.last_request_at_ms, model.user_metadata)
    # What its owner does now, and has noted about it, was not published.
    return _describe_run(model, checkpoints, checkpoints[0].created_at_ms, {})


async def _own_run(services: Services, model: ModelRecord) -> dict[str, Any]:
    checkpoints = await services.store.checkpoints.of_model(model.model_id)
    return _describe_run(model, checkpoints, model.last_request_at_ms, model.user_metadata)


def _describe_run(
    model: ModelRecord,
    checkpoints: Sequence[Checkpoint],
    last_request_at_ms: int,
    user_metadata: dict[str, str],
) -> dict[str, Any]:
    newest: dict[CheckpointKind, Checkpoint] = {}
    for checkpoint in checkpoints:
        newest.setdefault(checkpoint.kind, checkpoint)
    last, last_sampler = (
        newest.get(kind) for kind in (CheckpointKind.TRAINING, CheckpointKind.SAMPLER)
    )
    return {
        "training_run_id": model.model_id,
        "base_model": model.base_model,
        "model_owner": model.tenant_id,
        "is_lora": True,
        "lora_rank": model.lora.lora_rank,
        "corrupted": False,
        "last_request_time": as_datetime(last_request_at_ms).isoformat(),
        "last_checkpoint": describe(last) if last else None,
        "last_sampler_checkpoint": describe(last_sampler) if last_sampler else None,
        "user_metadata": user_metadata,
    }
