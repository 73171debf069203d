"""The ``cyclora`` command."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cyclora_client import adapters_cli, admin_cli
from cyclora_client.admin_cli import usage
from cyclora_client.admin_cli.quotas import own_quotas
from cyclora_client.tokenizers import TokenizerSource, default_cache, offline_environment
from cyclora_client.up.display import choose_display
from cyclora_client.up.errors import UpError
from cyclora_client.up.memory import parse_store_memory
from cyclora_client.up.options import TINY_CHAT, ServedModel, UpOptions
from cyclora_client.up.run import run_up
from cyclora_core import __version__
from cyclora_core.environment import unknown_variables
from cyclora_core.errors import CycloraError, Unavailable
from cyclora_core.types import BaseWeights, Dtype

app = typer.Typer(
    help="A LoRA training server you run yourself, for the Tinker API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(admin_cli.app, name="admin")
app.command("quotas")(own_quotas)
app.add_typer(adapters_cli.app, name="adapters")
app.command("usage")(usage.usage_of_ours)


@app.command()
def up(
    data: Annotated[Path, typer.Option(help="Folder for everything that must last.")] = Path(
        "data"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8000,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH_OR_HF_ID",
            help=f"A base model to serve; repeatable. Default {TINY_CHAT}, which is built in.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the base model. Default: chosen by the worker.")
    ] = None,
    base_weights: Annotated[
        BaseWeights | None, typer.Option(help="How the base model is kept. Default: as_loaded.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each worker.")] = None,
    store_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of the store, such as 512m or 4g. Default a quarter of the machine's.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Serve metrics and probes on this machine: the server's at this port, the "
            "scheduler's at the next, and the workers' behind it. Default none.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON once everything is ready.")
    ] = False,
) -> None:
    """Run everything on this machine: store, server, scheduler and workers."""
    display = choose_display(as_json=as_json)
    try:
        if wrong := unknown_variables(os.environ):
            raise UpError("; ".join(wrong))
        models = [ServedModel.parse(text) for text in base_model or [TINY_CHAT]]
        memory_bytes = parse_store_memory(store_memory) if store_memory else None
        options = UpOptions(
            data,
            host,
            port,
            models,
            dtype,
            threads,
            memory_bytes,
            base_weights=base_weights,
            metrics_port=metrics_port,
        )
    except CycloraError as error:
        display.failed(error)
        raise typer.Exit(2) from error
    raise typer.Exit(run_up(options, display))


@app.command()
def server() -> None:
    """Run one server process; CYCLORA_ environment variables are its settings."""
    _become("cyclora_server")


@app.command()
def scheduler() -> None:
    """Run one scheduler process; CYCLORA_ environment variables are its settings."""
    _become("cyclora_scheduler")


@app.command()
def worker() -> None:
    """Run one worker process; CYCLORA_ environment variables are its settings."""
    _become("cyclora_workers")


@app.command()
def tokenizers(
    api_key: Annotated[str, typer.Option(envvar="TINKER_API_KEY", help="An API key.")],
    url: Annotated[
        str, typer.Option(envvar="TINKER_BASE_URL", help="The server.")
    ] = "http://127.0.0.1:8000",
) -> None:
    """Fetch the server's tokenizers, and print the variables the plain SDK finds them with.

    Use it as: eval "$(cyclora tokenizers)". Programs that call cyclora_client.connect need none.
    """
    try:
        source = TokenizerSource(url, api_key)
        base_models = source.base_models()
        if not base_models:
            raise Unavailable(f"{url} serves no base model yet; is its worker still loading?")
        for base_model in base_models:
            source.folder(base_model)
    except CycloraError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for name, value in offline_environment(default_cache()).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    app()


def _become(package: str) -> None:
    """Replace this process, so that signals and exit codes go straight through."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", package])
