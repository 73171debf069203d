"""What the tenant of a key may use, and how much of it it does."""

from __future__ import annotations

from fastapi import APIRouter

from cyclora_server import quotas
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/api/v1", tags=["service"], dependencies=needs_key)


@router.get(
    "/quotas",
    summary="Quotas, what is used of them now, and when budgets renew",
    description="Null is without bound. `tokens` and `samples` are queued or running; a tenant "
    "whose `rate_pause_s` is not 0 waits that long for its rate. Days and months are those of UTC.",
)
async def get_quotas(identity: IdentityDep, services: ServicesDep) -> Json:
    return await quotas.described(services, identity.tenant_id)
