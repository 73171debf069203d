"""What a tenant may use and uses, as JSON."""

from __future__ import annotations

import dataclasses

from cyclora_core.quotas import QuotaUse, next_day, next_month, rate_wait_s
from cyclora_server.services import Json, Services


async def described(services: Services, tenant_id: str) -> Json:
    """Limits, what is used of them now, and when budgets renew; null is without bound."""
    quotas = await services.store.quotas.of(tenant_id)
    use, now_ms = await services.store.quotas.use(tenant_id), services.clock.now_ms()
    return {
        "tenant_id": tenant_id,
        "quotas": dataclasses.asdict(quotas),
        "use": _use(use),
        "rate_pause_s": _rate_pause_s(use, quotas.tokens_per_minute),
        "day_renews_at": next_day(now_ms).isoformat(),
        "month_renews_at": next_month(now_ms).isoformat(),
    }


def _use(use: QuotaUse) -> Json:
    fields = dataclasses.asdict(use)
    if use.startable_tokens is not None:
        fields["startable_tokens"] = round(use.startable_tokens)
    return fields


def _rate_pause_s(use: QuotaUse, per_minute: int | None) -> float | None:
    if per_minute is None or use.startable_tokens is None:
        return None
    return round(rate_wait_s(per_minute, use.startable_tokens), 1)
