"""``cyclora admin keys``."""

from __future__ import annotations

from typing import Annotated

import typer

from cyclora_client.admin_cli.shared import DEFAULT_URL, AdminKey, AsJson, Url, admin_client, show
from cyclora_core.accounts import TENANT_SCOPES, Scope

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.command("list")
def list_keys(
    admin_key: AdminKey,
    tenant_id: Annotated[str | None, typer.Argument(help="All tenants if not given.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the API keys of a tenant, or of all; the keys themselves are never shown again."""
    with admin_client(url, admin_key) as client:
        show(client.keys.list(tenant_id), as_json)


@app.command()
def create(
    tenant_id: str,
    name: str,
    admin_key: AdminKey,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What the key may do; repeatable. Default train, sample and read."),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print it; it is shown this once."""
    with admin_client(url, admin_key) as client:
        show([client.keys.create(tenant_id, name, scope or TENANT_SCOPES)], as_json)


@app.command()
def revoke(key_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Revoke an API key with effect on the next request."""
    with admin_client(url, admin_key) as client:
        client.keys.revoke(key_id)
