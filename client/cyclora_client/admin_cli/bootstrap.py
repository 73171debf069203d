"""``cyclora admin bootstrap``: the first key, where there is none to ask a server with."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from cyclora_client.admin_cli.shared import AsJson, show
from cyclora_client.up.bootstrap import first_admin_key
from cyclora_core.errors import CycloraError


def bootstrap(
    redis_url: Annotated[
        str, typer.Option(envvar="CYCLORA_REDIS_URL", help="The store of the deployment.")
    ],
    key_prefix: Annotated[
        str, typer.Option(envvar="CYCLORA_KEY_PREFIX", help="As its servers have it.")
    ] = "cyclora",
    force: Annotated[
        bool, typer.Option("--force", help="Even if there is an admin key that can be used.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the first admin key, directly in the store, and print it; it is shown this once."""
    try:
        key = asyncio.run(first_admin_key(redis_url, key_prefix, force=force))
    except CycloraError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    show([key], as_json)
