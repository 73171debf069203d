"""Where the models are, for administrators: loaded, unloaded and moved."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from cyclora_core.errors import NotFound, UserError
from cyclora_core.placement import Action, PlacedModel, Wish
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(prefix="/admin/v1/models", tags=["administration"], dependencies=needs_key)


@router.get("", summary="Live models and where their states are; of a tenant also idle ones")
async def list_models(
    services: ServicesDep, worker_id: str | None = None, tenant_id: str | None = None
) -> Json:
    placements = services.store.placements
    found = await placements.list(worker_id=worker_id, tenant_id=tenant_id)
    return {"models": [_model(each) for each in found]}


@router.post("/{model_id}/load", summary="Have a model in memory before its next operation")
async def load_model(model_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    await services.store.placements.wish(model_id, Wish(Action.LOAD), identity.key.key_id)
    return {}


@router.post("/{model_id}/unload", summary="Bring a model to storage; it does not end")
async def unload_model(model_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    await services.store.placements.wish(model_id, Wish(Action.UNLOAD), identity.key.key_id)
    return {}


@router.post(
    "/{model_id}/move",
    summary="Bring a model to another worker of its base model",
    openapi_extra=documented(admin_bodies.MoveModel),
)
async def move_model(
    model_id: str,
    body: Annotated[admin_bodies.MoveModel, Depends(json_body(admin_bodies.MoveModel))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    await _check_target(model_id, body.worker_id, services)
    wish = Wish(Action.MOVE, body.worker_id)
    await services.store.placements.wish(model_id, wish, identity.key.key_id)
    return {}


async def _check_target(model_id: str, worker_id: str, services: Services) -> None:
    """Refuse now what the scheduler could only note as impossible."""
    model = await services.store.models.get(model_id)
    if model is None:
        raise NotFound(f"model {model_id[:100]!r} does not exist")
    workers = {each.worker_id: each for each in await services.store.workers.list()}
    worker = workers.get(worker_id)
    if worker is None or not worker.is_alive:
        raise NotFound(f"worker {worker_id[:100]!r} does not exist, or has ended")
    if worker.base_model != model.base_model:
        raise UserError(
            f"worker {worker_id!r} serves {worker.base_model}; the model is one of "
            f"{model.base_model}"
        )
    if worker.is_draining:
        raise UserError(f"worker {worker_id!r} is draining; resume it first, or take another one")


def _model(placed: PlacedModel) -> dict[str, Any]:
    model = placed.model
    return {
        "model_id": model.model_id,
        "tenant_id": model.tenant_id,
        "base_model": model.base_model,
        "lora_rank": model.lora.lora_rank,
        "worker_id": model.worker_id,
        "place": placed.held.place,
        "num_bytes": placed.held.num_bytes,
        "applied_seq_id": model.applied_seq_id,
        "num_waiting": max(0, model.logged_seq_id - model.applied_seq_id),
        "wish": str(placed.wish).rstrip(":") if placed.wish else None,
        "note": placed.note or None,
    }
