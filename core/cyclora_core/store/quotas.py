"""What tenants may use, and how much of it they do; the scripts that change either hold to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cyclora_core import codec
from cyclora_core.accounts import Quotas as Limits
from cyclora_core.accounts import Tenant
from cyclora_core.quotas import QuotaUse, day_of, month_of, rate_level, rate_wait_s
from cyclora_core.store.connection import Connection, as_dict


class Quotas:
    """The read side; submitting, starting and settling write, ``tenants.update`` sets limits."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock

    async def of(self, tenant_id: str) -> Limits:
        """Without bounds for a tenant that is unknown."""
        return (await self._limits([tenant_id]))[tenant_id]

    async def use(self, tenant_id: str) -> QuotaUse:
        return (await self.uses([tenant_id]))[tenant_id]

    async def uses(self, tenant_ids: Sequence[str]) -> dict[str, QuotaUse]:
        """That of each tenant, asked for in one go."""
        limits, now_ms = await self._limits(tenant_ids), self._clock.now_ms()
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant_id in tenant_ids:
                pipe.hgetall(self._keys.quota_use(tenant_id))
            rows = await pipe.execute()
        return {
            tenant_id: _use(as_dict(row), limits[tenant_id].tokens_per_minute, now_ms)
            for tenant_id, row in zip(tenant_ids, rows, strict=True)
        }

    async def allowances(self, tenant_ids: Sequence[str]) -> dict[str, float]:
        """Tokens that each tenant under a rate may start now; the others are left out."""
        limits = await self._limits(tenant_ids)
        limited = [each for each in tenant_ids if limits[each].tokens_per_minute is not None]
        if not limited:
            return {}
        found = await self.uses(limited)
        return {
            tenant_id: use.startable_tokens
            for tenant_id, use in found.items()
            if use.startable_tokens is not None
        }

    async def rate_pause_s(self, tenant_id: str, request_id: str) -> float | None:
        """Seconds for which an operation still waits for its tenant's rate; None if it does not.

        What has started waits for its rate no more.
        """
        per_minute = (await self.of(tenant_id)).tokens_per_minute
        if per_minute is None:
            return None
        has_started = await self._redis.hexists(self._keys.future(request_id), "charged_tokens")
        level = (await self.use(tenant_id)).startable_tokens
        if has_started or level is None or level > 0:
            return None
        return rate_wait_s(per_minute, level)

    async def _limits(self, tenant_ids: Sequence[str]) -> Mapping[str, Limits]:
        if not tenant_ids:
            return {}
        rows = await self._redis.hmget(self._keys.tenants(), tenant_ids)
        return {
            tenant_id: codec.load(Tenant, row).quotas if row else Limits()
            for tenant_id, row in zip(tenant_ids, rows, strict=True)
        }


def _use(fields: Mapping[str, str], per_minute: int | None, now_ms: int) -> QuotaUse:
    def count(name: str) -> int:
        return int(fields.get(name, 0))

    level: float | None = per_minute
    if per_minute is not None and "rate_level" in fields:
        level = rate_level(per_minute, float(fields["rate_level"]), count("rate_at_ms"), now_ms)
    return QuotaUse(
        operations=count("operations"),
        samples=count("samples"),
        tokens=count("tokens"),
        adapters=count("adapters"),
        stored_bytes=count("stored_bytes"),
        tokens_today=count(day_of(now_ms)),
        tokens_this_month=count(month_of(now_ms)),
        startable_tokens=level,
    )
