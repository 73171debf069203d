"""Checkpoints as users list, keep, share and delete them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_core.ids import CheckpointKind, CheckpointPath, check_name, is_model_id
from cyclora_core.records import Checkpoint
from cyclora_server import access, projects, validate
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.sdk import KnowsExternalDep
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.wire import bodies

router = APIRouter(prefix="/api/v1", tags=["checkpoints"], dependencies=needs_key)

Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=2**53)]

ONE_CHECKPOINT = "/training_runs/{run}/checkpoints/{kind}/{name}"
_TYPES = {
    CheckpointKind.TRAINING: "training",
    CheckpointKind.SAMPLER: "sampler",
    CheckpointKind.EXTERNAL: "external",
}


@router.get(
    "/training_runs/{run}/checkpoints",
    summary="All checkpoints of a training run; of another tenant's, those that are published",
)
async def list_run_checkpoints(
    run: str, identity: IdentityDep, services: ServicesDep, knows_external: KnowsExternalDep
) -> Json:
    _, checkpoints = await access.readable_run(services, identity, run)
    shown = [
        describe(each)
        for each in checkpoints
        if knows_external or each.kind is not CheckpointKind.EXTERNAL
    ]
    return {"checkpoints": shown}


@router.get("/checkpoints", summary="The tenant's checkpoints, newest first")
async def list_checkpoints(
    identity: IdentityDep,
    services: ServicesDep,
    knows_external: KnowsExternalDep,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Json:
    tenant_id, bound = identity.tenant_id, identity.key.project_id
    if bound is None:
        found, total = await services.store.checkpoints.list(
            tenant_id, offset, limit, with_external=knows_external
        )
    else:
        all_found = await projects.checkpoints(
            services, tenant_id, bound, with_external=knows_external
        )
        found, total = all_found[offset : offset + limit], len(all_found)
    return {
        "checkpoints": [describe(each) for each in found],
        "cursor": cursor(offset, limit, total),
    }


@router.delete(ONE_CHECKPOINT, summary="Delete a checkpoint for good")
async def delete_checkpoint(
    run: str, kind: CheckpointKind, name: str, identity: IdentityDep, services: ServicesDep
) -> Json:
    path = await _owned_path(services, identity, run, kind, name)
    await access.discard_checkpoint(services, path, identity.key.key_id)
    return {}


@router.put(
    f"{ONE_CHECKPOINT}/ttl",
    summary="Have a checkpoint expire so many seconds from now; null: never",
    openapi_extra=documented(bodies.SetTtl),
)
async def set_ttl(
    run: str,
    kind: CheckpointKind,
    name: str,
    body: Annotated[bodies.SetTtl, Depends(json_body(bodies.SetTtl))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    path = await _owned_path(services, identity, run, kind, name)
    validate.check_ttl(body.ttl_seconds)
    expires_at_ms = expiry(services, body.ttl_seconds)
    by = identity.key.key_id
    is_found = await services.store.checkpoints.set_expiry(str(path), expires_at_ms, by)
    _check_found(is_found, path)
    return {}


@router.post(
    f"{ONE_CHECKPOINT}/publish",
    summary="Let every tenant load, sample and copy a checkpoint; doing it again changes nothing",
)
async def publish(
    run: str, kind: CheckpointKind, name: str, identity: IdentityDep, services: ServicesDep
) -> Json:
    path = await _owned_path(services, identity, run, kind, name)
    by = identity.key.key_id
    _check_found(await services.store.checkpoints.set_public(str(path), True, by), path)
    return {}


@router.delete(
    f"{ONE_CHECKPOINT}/publish",
    summary="Take a checkpoint back; doing it again changes nothing",
    description="Sampling sessions that other tenants opened on it end with it; models that they "
    "made from it, and copies, stay theirs.",
)
async def unpublish(
    run: str, kind: CheckpointKind, name: str, identity: IdentityDep, services: ServicesDep
) -> Json:
    path = await _owned_path(services, identity, run, kind, name)
    by = identity.key.key_id
    _check_found(await services.store.checkpoints.set_public(str(path), False, by), path)
    return {}


def checkpoint_path(run: str, kind: CheckpointKind, name: str) -> CheckpointPath:
    """The checkpoint that a URL names."""
    if not is_model_id(run):
        raise NotFound(access.no_model(run))
    return CheckpointPath(run, kind, check_name(name))


async def _owned_path(
    services: Services, identity: Identity, run: str, kind: CheckpointKind, name: str
) -> CheckpointPath:
    path = checkpoint_path(run, kind, name)
    await access.owned_checkpoint(services, identity, path)
    return path


def _check_found(is_found: bool, path: CheckpointPath) -> None:
    """Refuse what was deleted between our looking and changing it."""
    if not is_found:
        raise NotFound(access.no_checkpoint(path))


def expiry(services: Services, ttl_s: int | None) -> int | None:
    """When something that lives ``ttl_s`` from now on ends, in milliseconds since the epoch."""
    return None if ttl_s is None else services.clock.now_ms() + ttl_s * 1000


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as the SDK lists it; every time carries its zone."""
    expires_at_ms = checkpoint.expires_at_ms
    return {
        "checkpoint_id": f"{checkpoint.kind}/{checkpoint.name}",
        "checkpoint_type": _TYPES[checkpoint.kind],
        "time": as_datetime(checkpoint.created_at_ms).isoformat(),
        "tinker_path": checkpoint.path,
        "size_bytes": checkpoint.num_bytes,
        "public": checkpoint.is_public,
        "user_metadata": dict(checkpoint.user_metadata),
        "expires_at": None if expires_at_ms is None else as_datetime(expires_at_ms).isoformat(),
    }


def cursor(offset: int, limit: int, total: int) -> dict[str, int]:
    return {"offset": offset, "limit": limit, "total_count": total}
