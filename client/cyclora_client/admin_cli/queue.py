"""``cyclora admin queue`` and ``cyclora admin cycles``."""

from __future__ import annotations

from typing import Annotated

import typer

from cyclora_client.admin_cli.shared import (
    DEFAULT_URL,
    AdminKey,
    AsJson,
    Url,
    admin_client,
    show,
    show_rows,
)

app = typer.Typer(help="What waits, and ending it.", no_args_is_help=True)

Tenant = Annotated[str | None, typer.Option("--tenant", help="Of this tenant.")]
Model = Annotated[str | None, typer.Option("--model", help="Of this model.")]


@app.command()
def length(admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show how much waits of each tenant for each base model, and for how long."""
    with admin_client(url, admin_key) as client:
        show(client.queue.lengths(), as_json)


@app.command("list")
def list_operations(
    admin_key: AdminKey,
    tenant: Tenant = None,
    model: Model = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List what waits, the oldest first."""
    with admin_client(url, admin_key) as client:
        show(client.queue.list(tenant, model, limit, offset), as_json)


@app.command()
def cancel(
    admin_key: AdminKey,
    tenant: Tenant = None,
    model: Model = None,
    sample: Annotated[
        str | None, typer.Option("--sample", help="This request_id of a sample.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """End what waits of a tenant or a model, or one sample; what has begun runs to its end."""
    if sum(each is not None for each in (tenant, model, sample)) != 1:
        raise typer.BadParameter("name exactly one of --tenant, --model, --sample")
    with admin_client(url, admin_key) as client:
        num = client.queue.cancel(tenant_id=tenant, model_id=model, request_id=sample)
        show_rows([{"num_cancelled": num}], as_json)


def list_cycles(
    admin_key: AdminKey,
    worker: Annotated[str | None, typer.Option("--worker", help="Of this worker.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Of this base model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the cycles that run and the last that ended."""
    with admin_client(url, admin_key) as client:
        show(client.cycles.list(worker, base_model, limit), as_json)
