"""What all tenants used, for administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from cyclora_server import usage
from cyclora_server.auth import needs_key
from cyclora_server.services import ServicesDep
from cyclora_server.usage import UsageQueryDep

router = APIRouter(prefix="/admin/v1", tags=["administration"], dependencies=needs_key)


@router.get(
    "/usage",
    summary="What tenants used, summed by any of what it can be told apart by",
    description=usage.DESCRIPTION,
    response_model=None,
)
async def get_usage(
    query: UsageQueryDep,
    services: ServicesDep,
    tenant: Annotated[list[str], Query(max_length=100)] = [],  # noqa: B006 - FastAPI reads it only
) -> Response:
    # Those that were deleted too: else the sum of all would shrink with each.
    tenant_ids = tenant or [each.tenant_id for each in await services.store.tenants.list_all()]
    return await usage.answer(services, query, list(dict.fromkeys(tenant_ids)))
