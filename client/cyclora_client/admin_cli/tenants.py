"""``cyclora admin tenants``."""

from __future__ import annotations

import typer

from cyclora_client.admin_cli.shared import DEFAULT_URL, AdminKey, AsJson, Url, admin_client, show

app = typer.Typer(help="Tenants: one isolated party each.", no_args_is_help=True)


@app.command("list")
def list_tenants(admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List all tenants."""
    with admin_client(url, admin_key) as client:
        show(client.tenants.list(), as_json)


@app.command()
def create(name: str, admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Create a tenant."""
    with admin_client(url, admin_key) as client:
        show([client.tenants.create(name)], as_json)


@app.command("show")
def show_tenant(
    tenant_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show one tenant."""
    with admin_client(url, admin_key) as client:
        show([client.tenants.get(tenant_id)], as_json)


@app.command()
def weight(
    tenant_id: str,
    weight: float,
    admin_key: AdminKey,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Set a tenant's part of every cycle: 3 gives it three times the tokens of one with 1."""
    with admin_client(url, admin_key) as client:
        show([client.tenants.update(tenant_id, weight=weight)], as_json)


@app.command()
def rename(
    tenant_id: str, name: str, admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Give a tenant another name."""
    with admin_client(url, admin_key) as client:
        show([client.tenants.update(tenant_id, name=name)], as_json)
