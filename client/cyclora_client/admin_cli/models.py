"""``cyclora admin models``."""

from __future__ import annotations

from typing import Annotated

import typer

from cyclora_client.admin_cli.shared import DEFAULT_URL, AdminKey, AsJson, Url, admin_client, show

app = typer.Typer(help="Models and where their states are.", no_args_is_help=True)


@app.command("list")
def list_models(
    admin_key: AdminKey,
    worker: Annotated[str | None, typer.Option(help="Only those of a worker.")] = None,
    tenant: Annotated[str | None, typer.Option(help="All live ones of a tenant.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the models that workers have or that have something to run."""
    with admin_client(url, admin_key) as client:
        show(client.models.list(worker_id=worker, tenant_id=tenant), as_json)


@app.command()
def load(model_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Have a model in memory before its next operation."""
    with admin_client(url, admin_key) as client:
        client.models.load(model_id)


@app.command()
def unload(model_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Bring a model to storage; it does not end."""
    with admin_client(url, admin_key) as client:
        client.models.unload(model_id)


@app.command()
def move(model_id: str, worker_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Bring a model to another worker of its base model."""
    with admin_client(url, admin_key) as client:
        client.models.move(model_id, worker_id)
