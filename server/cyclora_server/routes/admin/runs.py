"""Training runs of all tenants, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_core.ids import CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_core.types import ModelRecord
from cyclora_server import access, projects
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.services import Json, ServicesDep
from cyclora_server.submission import submit_unload

router = APIRouter(prefix="/admin/v1/runs", tags=["administration"], dependencies=needs_key)

MAX_PAGE = 1000
Text = Annotated[str | None, Query(min_length=1, max_length=300)]


@router.get(
    "",
    summary="Find training runs, whoever's they are",
    description="Newest first of each tenant; `num` is of all that were found.",
)
async def find_runs(
    services: ServicesDep,
    tenant_id: Text = None,
    model_id: Text = None,
    base_model: Text = None,
    project_id: Text = None,
    created_before: AwareDatetime | None = None,
    is_ended: bool | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Json:
    before_ms = None if created_before is None else round(created_before.timestamp() * 1000)
    found = [
        each
        for each in await services.store.inventory.runs(tenant_id)
        if model_id in (None, each.model_id)
        and base_model in (None, each.base_model)
        and (before_ms is None or each.created_at_ms < before_ms)
        and is_ended in (None, each.is_ended)
    ]
    if project_id is not None:
        project_of = await projects.of_models(services, found)
        found = [each for each in found if project_of[each.model_id] == project_id]
    page = found[offset : offset + limit]
    project_of = await projects.of_models(services, page)
    checkpoints = await services.store.checkpoints.of_models([each.model_id for each in page])
    rows = [
        _run(model, project_of[model.model_id], theirs)
        for model, theirs in zip(page, checkpoints, strict=True)
    ]
    return {"runs": rows, "num": len(found)}


@router.delete(
    "/{model_id}",
    summary="End a training run and delete its checkpoints",
    description="What waits of it is cancelled, what runs is finished, then the model is unloaded. "
    "Of a run that has ended before, and whose session too, the record goes as well "
    "(`is_forgotten`).",
)
async def delete_run(model_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    model = await services.store.models.get(model_id)
    if model is None:
        raise NotFound(access.no_model(model_id))
    store, by = services.store, identity.key.key_id
    await store.audit.add("run_delete", {"model_id": model_id}, by, model.tenant_id)
    num_cancelled = await store.queues.cancel_model(model.tenant_id, model_id, by)
    if not model.is_ended:
        # Looked at again: what was cancelled is behind it now.
        model = await store.models.get(model_id) or model
        await submit_unload(services, model)
    named = [each.path for each in await store.checkpoints.of_model(model_id)]
    unnamed = await store.checkpoints.unlisted_of_model(model_id)
    for path in (*named, *unnamed):
        await access.discard_checkpoint(services, CheckpointPath.parse(path), by)
    return {
        "num_cancelled": num_cancelled,
        "num_checkpoints": len(named),
        "is_forgotten": model.is_ended and await store.inventory.drop_run(model),
    }


def _run(model: ModelRecord, project_id: str, checkpoints: list[Checkpoint]) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "tenant_id": model.tenant_id,
        "project_id": project_id,
        "base_model": model.base_model,
        "lora_rank": model.lora.lora_rank,
        "is_ended": model.is_ended,
        "worker_id": model.worker_id,
        "created_at": as_datetime(model.created_at_ms).isoformat(),
        "last_request_at": as_datetime(model.last_request_at_ms).isoformat(),
        "num_waiting": max(0, model.logged_seq_id - model.applied_seq_id),
        "num_checkpoints": len(checkpoints),
        "num_bytes": sum(each.num_bytes for each in checkpoints),
    }
