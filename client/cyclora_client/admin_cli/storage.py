"""``cyclora admin runs``, ``checkpoints``, ``garbage`` and ``settings``."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from cyclora_client.admin_cli.shared import (
    DEFAULT_URL,
    AdminKey,
    AsJson,
    Url,
    admin_client,
    show,
    show_rows,
    utc,
)

runs = typer.Typer(help="Training runs of all tenants.", no_args_is_help=True)
checkpoints = typer.Typer(help="Checkpoints of all tenants.", no_args_is_help=True)

Tenant = Annotated[str | None, typer.Option("--tenant", help="Of this tenant.")]
Model = Annotated[str | None, typer.Option("--model", help="Of this model.")]
BaseModel = Annotated[str | None, typer.Option(help="Of this base model.")]
Before = Annotated[
    datetime | None,
    typer.Option("--created-before", formats=["%Y-%m-%d"], help="Made before that day, UTC."),
]
Limit = Annotated[int, typer.Option(min=1, max=1000)]
Offset = Annotated[int, typer.Option(min=0)]


@runs.command("find")
def find_runs(
    admin_key: AdminKey,
    tenant: Tenant = None,
    model: Model = None,
    base_model: BaseModel = None,
    project: Annotated[str | None, typer.Option("--project")] = None,
    created_before: Before = None,
    ended: Annotated[
        bool | None, typer.Option("--ended/--live", help="Only such; both if not given.")
    ] = None,
    limit: Limit = 100,
    offset: Offset = 0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List training runs, the newest first."""
    with admin_client(url, admin_key) as client:
        found = client.runs.find(
            tenant_id=tenant,
            model_id=model,
            base_model=base_model,
            project_id=project,
            created_before=utc(created_before),
            is_ended=ended,
            limit=limit,
            offset=offset,
        )
        show(found, as_json)


@runs.command("delete")
def delete_run(
    model_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Cancel what waits of a run, end it, and delete its checkpoints."""
    with admin_client(url, admin_key) as client:
        show([client.runs.delete(model_id)], as_json)


@checkpoints.command("find")
def find_checkpoints(
    admin_key: AdminKey,
    tenant: Tenant = None,
    model: Model = None,
    base_model: BaseModel = None,
    name: Annotated[str | None, typer.Option(help="A part of its name.")] = None,
    created_before: Before = None,
    min_bytes: Annotated[int | None, typer.Option(min=0)] = None,
    expired: Annotated[bool | None, typer.Option("--expired/--not-expired")] = None,
    public: Annotated[bool | None, typer.Option("--public/--private")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List named checkpoints, and how many bytes all that were found take."""
    with admin_client(url, admin_key) as client:
        found = client.checkpoints.find(
            tenant_id=tenant,
            model_id=model,
            base_model=base_model,
            name=name,
            created_before=utc(created_before),
            min_bytes=min_bytes,
            is_expired=expired,
            is_public=public,
            limit=limit,
            offset=offset,
        )
        show(found.checkpoints, as_json)
    if not as_json:
        typer.echo(f"{found.num} checkpoints, {found.num_bytes} bytes")


@checkpoints.command("delete")
def delete_checkpoint(path: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Delete a checkpoint by its tinker:// path."""
    with admin_client(url, admin_key) as client:
        client.checkpoints.delete(path)


def collect_garbage(
    admin_key: AdminKey,
    free: Annotated[bool, typer.Option("--free", help="Free it; else it is only told.")] = False,
    digest: Annotated[
        str | None, typer.Option(help="Of a look before: free nothing but what that told.")
    ] = None,
    grace_hours: Annotated[
        float, typer.Option(min=0.2, help="Nothing changed within these hours is garbage.")
    ] = 24.0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what takes space and is of no use to anybody, or free it."""
    with admin_client(url, admin_key) as client:
        report = client.garbage.collect(
            dry_run=not free, grace_s=round(grace_hours * 3600), digest=digest
        )
        show(report.garbage, as_json)
    if not as_json:
        verb = "could be freed" if report.is_dry_run else "were freed"
        typer.echo(f"{report.num} things, {report.num_bytes} bytes {verb}; digest {report.digest}")


def show_settings(admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the settings in force; secrets are hidden."""
    with admin_client(url, admin_key) as client:
        found = client.settings.get()
    rows = _settings("server", url, found.server)
    for process in found.processes:
        rows += _settings(process.kind, process.name, process.settings)
    show_rows(rows, as_json)


def _settings(kind: str, name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"process": kind, "name": name, "setting": setting, "value": _text(value)}
        for setting, value in settings.items()
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
