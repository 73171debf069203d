"""What waits, of all tenants, and ending it; for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from cyclora_core import ids
from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_core.queues import WaitingOperation, lengths
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.problems import InvalidBody
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(prefix="/admin/v1/queue", tags=["administration"], dependencies=needs_key)

MAX_PAGE = 1000


@router.get(
    "",
    summary="How much waits, and for how long",
    description="By tenant and base model, most tokens first; what workers run is in it, and told "
    "apart.",
)
async def get_queue(services: ServicesDep) -> Json:
    found = lengths(await services.store.queues.waiting(None, None))
    now_ms = services.clock.now_ms()
    rows: list[dict[str, Any]] = [
        {
            "tenant_id": each.tenant_id,
            "base_model": each.base_model,
            "num_models": each.num_models,
            "num_operations": each.num_operations,
            "num_samples": each.num_samples,
            "num_tokens": each.num_tokens,
            "num_running": each.num_running,
            "oldest_s": max(0, now_ms - each.oldest_at_ms) / 1000,
        }
        for each in found
    ]
    return {
        "queue": rows,
        "num_operations": sum(each.num_operations for each in found),
        "num_samples": sum(each.num_samples for each in found),
        "num_tokens": sum(each.num_tokens for each in found),
        "num_running": sum(each.num_running for each in found),
        "oldest_s": max((row["oldest_s"] for row in rows), default=None),
    }


@router.get(
    "/operations",
    summary="What waits of a tenant, a model or all; never its contents",
    description="The one that has waited longest first.",
)
async def list_operations(
    services: ServicesDep,
    tenant_id: Annotated[str | None, Query(max_length=200)] = None,
    model_id: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Json:
    waiting = await services.store.queues.waiting(tenant_id, model_id)
    page = waiting[offset : offset + limit]
    return {"operations": [_operation(each) for each in page], "total": len(waiting)}


def _operation(each: WaitingOperation) -> dict[str, Any]:
    return {
        "request_id": each.request_id,
        "state": each.state,
        "kind": each.kind,
        "tenant_id": each.tenant_id,
        "owner_id": each.owner_id,
        "seq_id": each.seq_id,
        "base_model": each.base_model,
        "num_tokens": each.num_tokens,
        "submitted_at": as_datetime(each.submitted_at_ms).isoformat(),
    }


@router.post(
    "/cancel",
    summary="End a sample, or all that waits of a model or a tenant",
    description="Each becomes a failed future of the category `user`. Of models, what a worker was "
    "given runs to its end, and creations and unloadings stay; the order of what is sent "
    "afterwards is whole. A sample that is named ends also while it runs.",
    openapi_extra=documented(admin_bodies.CancelQueued),
)
async def cancel_queued(
    body: Annotated[admin_bodies.CancelQueued, Depends(json_body(admin_bodies.CancelQueued))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    queues, by = services.store.queues, identity.key.key_id
    if body.tenant_id is not None:
        if await services.store.tenants.get(body.tenant_id) is None:
            raise NotFound(f"tenant {body.tenant_id!r} does not exist")
        return {"num_cancelled": await queues.cancel_tenant(body.tenant_id, by)}
    if body.model_id is not None:
        model = await services.store.models.get(body.model_id)
        if model is None:
            raise NotFound(f"model {body.model_id!r} does not exist")
        num = await queues.cancel_model(model.tenant_id, model.model_id, by)
        return {"num_cancelled": num}
    assert body.request_id is not None
    return {"num_cancelled": await _cancel_sample(services, body.request_id, by)}


async def _cancel_sample(services: Services, request_id: str, by: str) -> int:
    owner_id = request_id.rpartition(":")[0]
    if not ids.is_sampling_session_id(owner_id):
        raise InvalidBody(
            f"request_id: {request_id[:200]!r} is no sample; of a model name the model_id, whose "
            "later operations would else run without it"
        )
    future = await services.store.futures.get(request_id)
    if future is None:
        raise NotFound(f"request {request_id!r} does not exist")
    waiting = await services.store.queues.waiting(future.tenant_id, owner_id)
    mine = [each for each in waiting if each.request_id == request_id]
    return await services.store.queues.cancel_samples(future.tenant_id, mine, by)
