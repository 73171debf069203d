"""What tenants may use, and how much of it they do."""

from __future__ import annotations

from datetime import datetime

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, part, read
from cyclora_core.accounts import Quotas
from cyclora_core.quotas import QuotaUse


@dataclass(frozen=True)
class TenantQuotas:
    """The quotas of one tenant; None is without bound."""

    tenant_id: str
    quotas: Quotas
    use: QuotaUse
    rate_pause_s: float | None
    """Seconds until more work of a tenant under a rate starts; None without a rate."""
    day_renews_at: datetime
    month_renews_at: datetime


@dataclass(frozen=True)
class QuotaRow:
    """One quota as tables show it."""

    quota: str
    limit: int | None
    used: int | None
    renews_at: datetime | None = None


def rows_of(found: TenantQuotas) -> list[QuotaRow]:
    """Every quota beside what is used of it."""
    quotas, use = found.quotas, found.use
    per_minute = quotas.tokens_per_minute
    level = use.startable_tokens
    rate_used = None if per_minute is None or level is None else round(per_minute - level)
    return [
        QuotaRow("max_adapters", quotas.max_adapters, use.adapters),
        QuotaRow("max_rank", quotas.max_rank, None),
        QuotaRow("max_queued_tokens", quotas.max_queued_tokens, use.tokens),
        QuotaRow("max_concurrent_samples", quotas.max_concurrent_samples, use.samples),
        QuotaRow("tokens_per_minute", per_minute, rate_used),
        QuotaRow("max_stored_bytes", quotas.max_stored_bytes, use.stored_bytes),
        QuotaRow("tokens_per_day", quotas.tokens_per_day, use.tokens_today, found.day_renews_at),
        QuotaRow(
            "tokens_per_month",
            quotas.tokens_per_month,
            use.tokens_this_month,
            found.month_renews_at,
        ),
    ]


class TenantsQuotas:
    """``/admin/v1/tenants/{tenant_id}/quotas``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def get(self, tenant_id: str) -> TenantQuotas:
        return read(TenantQuotas, self._http.call("GET", f"tenants/{part(tenant_id)}/quotas"))

    def set(self, tenant_id: str, **quotas: int | None) -> TenantQuotas:
        """Change those given, None takes a bound away; with effect on the next request."""
        route = f"tenants/{part(tenant_id)}/quotas"
        return read(TenantQuotas, self._http.call("PUT", route, body=dict(quotas)))
