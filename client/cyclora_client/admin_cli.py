"""The ``cyclora admin`` commands: a table for people, ``--json`` for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cyclora_client.admin import AdminClient
from cyclora_core.errors import CycloraError

app = typer.Typer(help="Tenants, API keys and workers of a running server.", no_args_is_help=True)

Url = Annotated[
    str, typer.Option(envvar="CYCLORA_URL", help="The server, such as http://127.0.0.1:8000.")
]
AdminKey = Annotated[
    str, typer.Option(envvar="CYCLORA_ADMIN_KEY", help="An API key with admin rights.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_UNLIMITED_WIDTH = 100_000
_DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def tenants(admin_key: AdminKey, url: Url = _DEFAULT_URL, as_json: AsJson = False) -> None:
    """List all tenants."""
    with _client(url, admin_key) as client:
        _show(client.list_tenants(), as_json)


@app.command()
def create_tenant(
    name: str, admin_key: AdminKey, url: Url = _DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Create a tenant."""
    with _client(url, admin_key) as client:
        _show([client.create_tenant(name)], as_json)


@app.command()
def keys(
    admin_key: AdminKey,
    tenant_id: Annotated[str | None, typer.Argument(help="All tenants if not given.")] = None,
    url: Url = _DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the API keys of a tenant, or of all; the keys themselves are never shown again."""
    with _client(url, admin_key) as client:
        _show(client.list_keys(tenant_id), as_json)


@app.command()
def create_key(
    tenant_id: str,
    name: str,
    admin_key: AdminKey,
    admin: Annotated[bool, typer.Option(help="Give the key admin rights.")] = False,
    url: Url = _DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print it; it is shown this once."""
    with _client(url, admin_key) as client:
        _show([client.create_key(tenant_id, name, admin)], as_json)


@app.command()
def revoke_key(key_id: str, admin_key: AdminKey, url: Url = _DEFAULT_URL) -> None:
    """Revoke an API key with effect on the next request."""
    with _client(url, admin_key) as client:
        client.revoke_key(key_id)


@app.command()
def workers(admin_key: AdminKey, url: Url = _DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the workers and what they do."""
    with _client(url, admin_key) as client:
        _show(client.list_workers(), as_json)


@contextmanager
def _client(url: str, admin_key: str) -> Generator[AdminClient]:
    try:
        with AdminClient(url, admin_key) as client:
            yield client
    except CycloraError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _show(records: Sequence[Any], as_json: bool) -> None:
    rows = [dataclasses.asdict(record) for record in records]
    if as_json:
        typer.echo(json.dumps(rows, default=datetime.isoformat))
        return
    if not rows:
        typer.echo("none")
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    # Never cut: an identifier that ends in dots is of no use to the next command.
    Console(width=_UNLIMITED_WIDTH, highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
