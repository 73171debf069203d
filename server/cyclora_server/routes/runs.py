"""Training runs and their checkpoints, as users list and delete them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cyclora_core.clock import as_datetime
from cyclora_core.ids import CheckpointKind, CheckpointPath, check_name
from cyclora_core.records import Checkpoint
from cyclora_core.types import ModelRecord
from cyclora_server import access
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.services import Json, Services, ServicesDep

router = APIRouter(prefix="/api/v1", tags=["training runs"], dependencies=needs_key)

Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0)]

_TYPES = {
    CheckpointKind.TRAINING: "training",
    CheckpointKind.SAMPLER: "sampler",
    CheckpointKind.EXTERNAL: "external",
}


@router.get("/training_runs", summary="The tenant's training runs, newest first")
async def list_training_runs(
    identity: IdentityDep, services: ServicesDep, limit: Limit = 20, offset: Offset = 0
) -> Json:
    models, total = await services.store.models.list(identity.tenant_id, offset, limit)
    runs = await asyncio.gather(*(_training_run(services, model) for model in models))
    return {"training_runs": runs, "cursor": _cursor(offset, limit, total)}


@router.get("/training_runs/{run}", summary="One training run")
async def get_training_run(run: str, identity: IdentityDep, services: ServicesDep) -> Json:
    return await _training_run(
        services, await access.owned_model(services, identity.tenant_id, run)
    )


@router.get("/training_runs/{run}/checkpoints", summary="All checkpoints of a training run")
async def list_run_checkpoints(run: str, identity: IdentityDep, services: ServicesDep) -> Json:
    await access.owned_model(services, identity.tenant_id, run)
    checkpoints = await services.store.checkpoints.of_model(run)
    return {"checkpoints": [describe(each) for each in checkpoints]}


@router.get("/checkpoints", summary="The tenant's checkpoints, newest first")
async def list_checkpoints(
    identity: IdentityDep, services: ServicesDep, limit: Limit = 100, offset: Offset = 0
) -> Json:
    found, total = await services.store.checkpoints.list(identity.tenant_id, offset, limit)
    return {
        "checkpoints": [describe(each) for each in found],
        "cursor": _cursor(offset, limit, total),
    }


@router.delete(
    "/training_runs/{run}/checkpoints/{kind}/{name}", summary="Delete a checkpoint for good"
)
async def delete_checkpoint(
    run: str, kind: CheckpointKind, name: str, identity: IdentityDep, services: ServicesDep
) -> Json:
    await access.owned_model(services, identity.tenant_id, run)
    path = CheckpointPath(run, kind, check_name(name))
    await access.owned_checkpoint(services, identity.tenant_id, path)
    await access.discard_checkpoint(services, path)
    return {}


async def _training_run(services: Services, model: ModelRecord) -> dict[str, Any]:
    checkpoints = await services.store.checkpoints.of_model(model.model_id)
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
        "last_request_time": as_datetime(model.last_request_at_ms).isoformat(),
        "last_checkpoint": describe(last) if last else None,
        "last_sampler_checkpoint": describe(last_sampler) if last_sampler else None,
        "user_metadata": model.user_metadata,
    }


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as the SDK lists it; every time carries its zone."""
    expires_at_ms = checkpoint.expires_at_ms
    return {
        "checkpoint_id": f"{checkpoint.kind}/{checkpoint.name}",
        "checkpoint_type": _TYPES[checkpoint.kind],
        "time": as_datetime(checkpoint.created_at_ms).isoformat(),
        "tinker_path": checkpoint.path,
        "size_bytes": checkpoint.num_bytes,
        "public": False,
        "user_metadata": dict(checkpoint.user_metadata),
        "expires_at": None if expires_at_ms is None else as_datetime(expires_at_ms).isoformat(),
    }


def _cursor(offset: int, limit: int, total: int) -> dict[str, int]:
    return {"offset": offset, "limit": limit, "total_count": total}
