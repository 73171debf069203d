"""Options that all ``cyclora admin`` commands have, and how they answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cyclora_client.admin import AdminClient
from cyclora_core.errors import CycloraError

Url = Annotated[
    str, typer.Option(envvar="CYCLORA_URL", help="The server, such as http://127.0.0.1:8000.")
]
AdminKey = Annotated[
    str, typer.Option(envvar="CYCLORA_ADMIN_KEY", help="An API key with admin rights.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_UNLIMITED_WIDTH = 100_000
DEFAULT_URL = "http://127.0.0.1:8000"


def utc(at: datetime | None) -> datetime | None:
    """A time that was given without a zone, which is meant as UTC."""
    return None if at is None else at.replace(tzinfo=UTC)


@contextmanager
def admin_client(url: str, admin_key: str) -> Generator[AdminClient]:
    """A client whose errors end the command with one line."""
    with ending_errors(), AdminClient(url, admin_key) as client:
        yield client


@contextmanager
def ending_errors() -> Generator[None]:
    """End the command with one line of what went wrong."""
    try:
        yield
    except CycloraError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def show(records: Sequence[Any], as_json: bool) -> None:
    """Print records, of dataclasses of one kind."""
    show_rows([dataclasses.asdict(record) for record in records], as_json)


def show_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows that have the same columns."""
    if as_json:
        typer.echo(json.dumps([dict(row) for row in rows], default=datetime.isoformat))
        return
    if not rows:
        typer.echo("none")
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    # Never cut or replaced: an identifier that ends in dots, or in which ":train:" has become a
    # picture of one, is of no use to the next command.
    Console(width=_UNLIMITED_WIDTH, highlight=False, emoji=False).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(_cell, value))
    if isinstance(value, dict):
        return " ".join(f"{name}={_cell(part)}" for name, part in value.items())
    return str(value)
