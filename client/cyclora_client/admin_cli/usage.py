"""``cyclora admin usage`` and ``cyclora usage``: who used what."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer

from cyclora_client.admin.usage import UsageRow, own_usage
from cyclora_client.admin_cli.shared import (
    DEFAULT_URL,
    AdminKey,
    AsJson,
    Url,
    admin_client,
    ending_errors,
    show_rows,
    utc,
)
from cyclora_core.usage import GroupBy

By = Annotated[
    str,
    typer.Option(help=f"What to sum by, with commas between: {', '.join(GroupBy)}."),
]
Projects = Annotated[list[str] | None, typer.Option("--project", help="Only these; repeatable.")]
Keys = Annotated[list[str] | None, typer.Option("--key", help="Only these key ids; repeatable.")]
Runs = Annotated[list[str] | None, typer.Option("--run", help="Only these; repeatable.")]
BaseModels = Annotated[
    list[str] | None, typer.Option("--base-model", help="Only these; repeatable.")
]
_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M"]
From = Annotated[
    datetime | None,
    typer.Option("--from", formats=_FORMATS, help="Full hour, UTC. Default 31 days ago."),
]
Before = Annotated[
    datetime | None, typer.Option(formats=_FORMATS, help="Full hour, UTC. Default the next one.")
]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]


def usage_of_tenants(
    admin_key: AdminKey,
    by: By = "tenant",
    tenant: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
    project: Projects = None,
    key: Keys = None,
    run: Runs = None,
    base_model: BaseModels = None,
    starting_on: From = None,
    before: Before = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Show what tenants used: tokens, checkpoints, and bytes times the seconds they were stored."""
    groups = _groups(by)
    with admin_client(url, admin_key) as client:
        rows = client.usage.sums(
            groups,
            tenants=tenant or (),
            projects=project or (),
            keys=key or (),
            runs=run or (),
            base_models=base_model or (),
            starting_on=utc(starting_on),
            ending_before=utc(before),
        )
    _show(rows, as_json=as_json, as_csv=as_csv)


def usage_of_ours(
    api_key: Annotated[str, typer.Option(envvar="TINKER_API_KEY", help="An API key.")],
    by: By = "project",
    project: Projects = None,
    key: Keys = None,
    run: Runs = None,
    base_model: BaseModels = None,
    starting_on: From = None,
    before: Before = None,
    url: Annotated[str, typer.Option(envvar="TINKER_BASE_URL", help="The server.")] = DEFAULT_URL,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Show what your tenant used: tokens, checkpoints, and bytes times the seconds stored."""
    groups = _groups(by)
    with ending_errors():
        usage, http = own_usage(url, api_key)
        try:
            rows = usage.sums(
                groups,
                projects=project or (),
                keys=key or (),
                runs=run or (),
                base_models=base_model or (),
                starting_on=utc(starting_on),
                ending_before=utc(before),
            )
        finally:
            http.close()
    _show(rows, as_json=as_json, as_csv=as_csv)


def _groups(by: str) -> list[GroupBy]:
    try:
        return [GroupBy(name) for name in by.split(",") if name]
    except ValueError as error:
        expected = ", ".join(GroupBy)
        raise typer.BadParameter(f"{by!r}; expected some of {expected}") from error


def _show(rows: Sequence[UsageRow], *, as_json: bool, as_csv: bool) -> None:
    flat = [{**row.group, **row.amounts} for row in rows]
    if not as_csv:
        show_rows(flat, as_json)
        return
    if flat:
        writer = csv.DictWriter(sys.stdout, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
