"""The last cycles of the workers, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from cyclora_core.clock import as_datetime
from cyclora_core.store.workers import MAX_ENDED_CYCLES
from cyclora_core.types import Cycle, EndedCycle
from cyclora_server.auth import needs_key
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/admin/v1", tags=["administration"], dependencies=needs_key)


@router.get(
    "/cycles",
    summary="Cycles that run, and the last that ended, newest first",
    description=f"The last {MAX_ENDED_CYCLES} of each base model are kept. One whose worker died "
    "in it is not among them: its operations ran in another. Of one that runs the tokens are not "
    "known yet.",
)
async def list_cycles(
    services: ServicesDep,
    worker_id: Annotated[str | None, Query(max_length=200)] = None,
    base_model: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ENDED_CYCLES)] = 50,
) -> Json:
    workers = services.store.workers
    names = [each.name for each in await services.store.base_models.list()]
    ended = [
        cycle
        for name in names
        if base_model in (None, name)
        for cycle in await workers.ended_cycles(name, MAX_ENDED_CYCLES)
        if worker_id in (None, cycle.worker_id)
    ]
    ended.sort(key=lambda each: each.ended_at_ms, reverse=True)
    running = [
        each
        for each in await workers.running_cycles()
        if worker_id in (None, each.worker_id) and base_model in (None, each.base_model)
    ]
    rows = [*map(_running, running), *map(_ended, ended)]
    return {"cycles": rows[:limit]}


def _running(cycle: Cycle) -> dict[str, Any]:
    return {
        "cycle_id": cycle.cycle_id,
        "base_model": cycle.base_model,
        "worker_id": cycle.worker_id,
        "tenants": sorted({each.tenant_id for each in (*cycle.models, *cycle.samples)}),
        "num_models": len(cycle.models),
        "num_operations": sum(len(model.operations) for model in cycle.models),
        "num_samples": len(cycle.samples),
        "num_tokens": None,
        "dispatched_at": as_datetime(cycle.dispatched_at_ms).isoformat(),
        "started_at": None,
        "ended_at": None,
    }


def _ended(cycle: EndedCycle) -> dict[str, Any]:
    return {
        "cycle_id": cycle.cycle_id,
        "base_model": cycle.base_model,
        "worker_id": cycle.worker_id,
        "tenants": list(cycle.tenants),
        "num_models": cycle.num_models,
        "num_operations": cycle.num_operations,
        "num_samples": cycle.num_samples,
        "num_tokens": cycle.num_tokens,
        "dispatched_at": as_datetime(cycle.dispatched_at_ms).isoformat(),
        "started_at": as_datetime(cycle.started_at_ms).isoformat(),
        "ended_at": as_datetime(cycle.ended_at_ms).isoformat(),
    }
