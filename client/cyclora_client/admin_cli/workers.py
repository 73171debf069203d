"""``cyclora admin workers``."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer

from cyclora_client.admin.fleet import Worker
from cyclora_client.admin_cli.shared import (
    DEFAULT_URL,
    AdminKey,
    AsJson,
    Url,
    admin_client,
    show,
    show_rows,
)

app = typer.Typer(help="Workers and what they do.", no_args_is_help=True)


@app.command("list")
def list_workers(admin_key: AdminKey, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the workers and what they do; all that one says of itself with --json."""
    with admin_client(url, admin_key) as client:
        workers = client.workers.list()
    if as_json:
        show(workers, as_json)
    else:
        show_rows([_row(worker) for worker in workers], as_json)


@app.command()
def drain(worker_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Have a worker give up its models and take nothing new; once drained it may be stopped."""
    with admin_client(url, admin_key) as client:
        client.workers.drain(worker_id)


@app.command()
def resume(worker_id: str, admin_key: AdminKey, url: Url = DEFAULT_URL) -> None:
    """Let a worker that was drained serve again."""
    with admin_client(url, admin_key) as client:
        client.workers.resume(worker_id)


def _row(worker: Worker) -> dict[str, Any]:
    fields = dataclasses.asdict(worker)
    info = fields.pop("info")
    return {
        "worker_id": fields.pop("worker_id"),
        "name": info.get("name"),
        **fields,
        "tokens_per_s": info.get("tokens_per_s"),
    }
