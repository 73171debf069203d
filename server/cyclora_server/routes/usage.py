"""What the caller's tenant used, summed as it likes."""

from __future__ import annotations

from fastapi import APIRouter, Response

from cyclora_server import usage
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.services import ServicesDep
from cyclora_server.usage import UsageQueryDep

router = APIRouter(prefix="/api/v1", tags=["billing"], dependencies=needs_key)


@router.get(
    "/usage",
    summary="What the tenant used, summed by any of what it can be told apart by",
    description=usage.DESCRIPTION,
    response_model=None,
)
async def get_usage(query: UsageQueryDep, identity: IdentityDep, services: ServicesDep) -> Response:
    return await usage.answer(services, query, [identity.tenant_id])
