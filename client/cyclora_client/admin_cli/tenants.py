"""``cyclora admin tenants``."""

from __future__ import annotations

from typing import Annotated

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


@app.command()
def disable(
    tenant_id: str,
    reason: Annotated[str, typer.Argument(help="What its keys are told.")],
    admin_key: AdminKey,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Close a tenant to its keys; what it had sent before still runs."""
    with admin_client(url, admin_key) as client:
        changed = client.tenants.update(tenant_id, is_enabled=False, disabled_reason=reason)
        show([changed], as_json)


@app.command()
def enable(
    tenant_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Open a disabled tenant to its keys again."""
    with admin_client(url, admin_key) as client:
        show([client.tenants.update(tenant_id, is_enabled=True, disabled_reason="")], as_json)


@app.command()
def delete(
    tenant_id: str,
    admin_key: AdminKey,
    force: Annotated[bool, typer.Option("--force", help="Even if it has live sessions.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Delete a tenant with its keys, models and checkpoints; its books stay."""
    with admin_client(url, admin_key) as client:
        client.tenants.delete(tenant_id, force=force)


@app.command()
def projects(
    tenant_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """List a tenant's projects, and what is in each."""
    with admin_client(url, admin_key) as client:
        show(client.tenants.projects(tenant_id), as_json)
