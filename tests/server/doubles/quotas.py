"""Quotas, as the server sees them in the store; nothing here holds anybody to them."""

from __future__ import annotations

from cyclora_core.accounts import Quotas as Limits
from cyclora_core.quotas import QuotaUse
from server.doubles.accounts import Tenants


class Quotas:
    def __init__(self, tenants: Tenants) -> None:
        self.uses: dict[str, QuotaUse] = {}
        self.pause_s: float | None = None
        self._tenants = tenants

    async def of(self, tenant_id: str) -> Limits:
        tenant = await self._tenants.get(tenant_id)
        return tenant.quotas if tenant else Limits()

    async def use(self, tenant_id: str) -> QuotaUse:
        return self.uses.get(tenant_id, QuotaUse())

    async def rate_pause_s(self, tenant_id: str, request_id: str) -> float | None:
        assert tenant_id
        assert request_id
        return self.pause_s
