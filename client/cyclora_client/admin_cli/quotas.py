"""``cyclora admin quotas``, and ``cyclora quotas`` for whoever is held to them."""

from __future__ import annotations

from typing import Annotated

import typer

from cyclora_client.admin.http import AdminHttp, read
from cyclora_client.admin.quotas import TenantQuotas, rows_of
from cyclora_client.admin_cli.shared import (
    DEFAULT_URL,
    AdminKey,
    AsJson,
    Url,
    admin_client,
    ending_errors,
    show,
)
from cyclora_core.errors import UserError
from cyclora_core.quotas import Quota

app = typer.Typer(help="Quotas: what tenants may use at most.", no_args_is_help=True)

NO_BOUND = "none"

_Limit = Annotated[str | None, typer.Option(metavar="NUMBER|none", show_default=False)]


@app.command("show")
def show_quotas(
    tenant_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show what a tenant may use, and how much of it it does."""
    with admin_client(url, admin_key) as client:
        show(rows_of(client.quotas.get(tenant_id)), as_json)


@app.command("set")
def set_quotas(
    tenant_id: str,
    admin_key: AdminKey,
    max_adapters: _Limit = None,
    max_rank: _Limit = None,
    max_queued_tokens: _Limit = None,
    max_concurrent_samples: _Limit = None,
    tokens_per_minute: _Limit = None,
    max_stored_bytes: _Limit = None,
    tokens_per_day: _Limit = None,
    tokens_per_month: _Limit = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Change quotas of a tenant, with effect on its next request; "none" takes a bound away."""
    given = {
        Quota.MAX_ADAPTERS: max_adapters,
        Quota.MAX_RANK: max_rank,
        Quota.MAX_QUEUED_TOKENS: max_queued_tokens,
        Quota.MAX_CONCURRENT_SAMPLES: max_concurrent_samples,
        Quota.TOKENS_PER_MINUTE: tokens_per_minute,
        Quota.MAX_STORED_BYTES: max_stored_bytes,
        Quota.TOKENS_PER_DAY: tokens_per_day,
        Quota.TOKENS_PER_MONTH: tokens_per_month,
    }
    with admin_client(url, admin_key) as client:
        changes = {
            str(name): _limit(name, text) for name, text in given.items() if text is not None
        }
        if not changes:
            raise UserError("nothing to change; give at least one quota, such as --max-rank 32")
        show(rows_of(client.quotas.set(tenant_id, **changes)), as_json)


def _limit(quota: Quota, text: str) -> int | None:
    if text == NO_BOUND:
        return None
    if not text.isdecimal():
        raise UserError(f"{quota} {text!r} is not understood; expected a number, or {NO_BOUND}")
    return int(text)


def own_quotas(
    api_key: Annotated[str, typer.Option(envvar="TINKER_API_KEY", help="An API key.")],
    url: Annotated[str, typer.Option(envvar="TINKER_BASE_URL", help="The server.")] = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what your tenant may use, how much of it it does, and when budgets renew."""
    with ending_errors():
        show(rows_of(_own(url, api_key)), as_json)


def _own(url: str, api_key: str) -> TenantQuotas:
    http = AdminHttp(url, api_key, None, "/api/v1")
    try:
        return read(TenantQuotas, http.call("GET", "quotas"))
    finally:
        http.close()
