"""What the cluster consists of, for administrators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from cyclora_core.clock import as_datetime
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/admin/v1", tags=["administration"], dependencies=needs_key)


@router.get("/workers", summary="Workers and the cycles they execute")
async def list_workers(services: ServicesDep) -> Json:
    workers: list[dict[str, Any]] = [
        {
            "worker_id": worker.worker_id,
            "base_model": worker.base_model,
            "registered_at": as_datetime(worker.registered_at_ms).isoformat(),
            "is_alive": worker.is_alive,
            "cycle_id": worker.cycle_id,
            "is_draining": worker.is_draining,
            "is_drained": worker.is_drained,
            "num_models": worker.num_models,
            "num_samples": worker.num_samples,
            "info": dict(worker.info),
        }
        for worker in await services.store.workers.list()
    ]
    return {"workers": workers}


@router.post(
    "/workers/{worker_id}/drain",
    summary="Have a worker give up its models and take nothing new; once drained it may be stopped",
)
async def drain_worker(worker_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    await services.store.workers.set_draining(worker_id, True, identity.key.key_id)
    return {}


@router.post("/workers/{worker_id}/resume", summary="Let a worker that was drained serve again")
async def resume_worker(worker_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    await services.store.workers.set_draining(worker_id, False, identity.key.key_id)
    return {}


@router.get("/capacity", summary="Room for new work, and why it is refused if it is")
async def get_capacity(services: ServicesDep) -> Json:
    return services.capacity.describe()


@router.get("/base_models", summary="Base models as their workers describe them")
async def list_base_models(services: ServicesDep) -> Json:
    return {"base_models": [base.to_json() for base in await services.store.base_models.list()]}
