"""The ``cyclora adapters`` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cyclora_client.adapters import upload_adapter
from cyclora_core.errors import CycloraError

app = typer.Typer(help="Adapters trained elsewhere with PEFT.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Adapters trained elsewhere with PEFT."""


@app.command()
def upload(
    folder: Annotated[Path, typer.Argument(help="What PEFT's save_pretrained has written.")],
    base_model: Annotated[str, typer.Option(help="The base model, by the name it is served as.")],
    api_key: Annotated[str, typer.Option(envvar="TINKER_API_KEY", help="An API key.")],
    name: Annotated[str, typer.Option(help="Of the checkpoint.")] = "adapter",
    url: Annotated[
        str, typer.Option(envvar="TINKER_BASE_URL", help="The server.")
    ] = "http://127.0.0.1:8000",
) -> None:
    """Upload an adapter and print its tinker:// path, to train on it or to sample from it."""
    try:
        path = upload_adapter(folder, base_model, name=name, base_url=url, api_key=api_key)
    except CycloraError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(path)
