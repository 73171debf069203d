"""``cyclora admin keys``."""

from __future__ import annotations

from datetime import datetime
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
    project: Annotated[
        str | None, typer.Option(help="Put all its sessions there, and show it no other project.")
    ] = None,
    expires_at: Annotated[
        datetime | None, typer.Option(help="When it ends, such as 2030-01-31T18:00:00, local time.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="For how many days it lives.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print it; it is shown this once."""
    with admin_client(url, admin_key) as client:
        key = client.keys.create(
            tenant_id,
            name,
            scope or TENANT_SCOPES,
            project_id=project,
            expires_at=None if expires_at is None else expires_at.astimezone(),
            lifetime_s=None if days is None else round(days * 24 * 3600),
        )
        show([key], as_json)


@app.command()
def revoke(key_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Revoke an API key; what is held with it ends within a second."""
    with admin_client(url, admin_key) as client:
        client.keys.revoke(key_id)
