"""Training runs, as users list them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_core.ids import CheckpointKind
from cyclora_core.records import Checkpoint
from cyclora_core.types import ModelRecord
from cyclora_server import access, projects
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.routes.checkpoints import Limit, Offset, cursor, describe
from cyclora_server.routes.scope import AccessScope, Scope
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/api/v1", tags=["training runs"], dependencies=needs_key)


ProjectId = Annotated[str | None, Query(min_length=1, max_length=200)]


@router.get(
    "/training_runs",
    summary="Training runs, newest first",
    description="`access_scope=accessible` adds those of others that have a published checkpoint. "
    "`project_id` leaves those of one project, which are always the tenant's own. A key "
    "that is bound to a project lists that one.",
)
async def list_training_runs(
    identity: IdentityDep,
    services: ServicesDep,
    limit: Limit = 20,
    offset: Offset = 0,
    scope: Scope = AccessScope.OWNED,
    project_id: ProjectId = None,
) -> Json:
    runs, tenant_id = services.store.runs, identity.tenant_id
    project_id = projects.chosen(identity, project_id)
    if project_id is not None:
        models, total = await runs.list_of_project(tenant_id, project_id, offset, limit)
    elif scope is AccessScope.ACCESSIBLE:
        models, total = await runs.list_accessible(tenant_id, offset, limit)
    else:
        models, total = await runs.list(tenant_id, offset, limit)
    found = await services.store.checkpoints.of_models([model.model_id for model in models])
    return {
        "training_runs": [
            _describe_run(tenant_id, model, checkpoints)
            for model, checkpoints in zip(models, found, strict=True)
        ],
        "cursor": cursor(offset, limit, total),
    }


@router.get(
    "/training_runs/{run}",
    summary="One training run",
    description="With `access_scope=accessible`, another tenant's run is shown as far as its "
    "published checkpoints tell it.",
)
async def get_training_run(
    run: str, identity: IdentityDep, services: ServicesDep, scope: Scope = AccessScope.OWNED
) -> Json:
    model, checkpoints = await access.readable_run(services, identity, run)
    if scope is AccessScope.OWNED and model.tenant_id != identity.tenant_id:
        raise NotFound(access.no_model(run))
    return _describe_run(identity.tenant_id, model, checkpoints)


def _describe_run(
    tenant_id: str, model: ModelRecord, checkpoints: Sequence[Checkpoint]
) -> dict[str, Any]:
    """A run as its owner sees it, or as others do.

    What its owner does now, and has noted about it, was not published.
    """
    last_request_at_ms, user_metadata = model.last_request_at_ms, model.user_metadata
    if model.tenant_id != tenant_id:
        checkpoints = [each for each in checkpoints if each.is_public]
        times = [each.created_at_ms for each in checkpoints]
        last_request_at_ms, user_metadata = max(times, default=model.created_at_ms), {}
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
