"""The ``cyclora admin`` commands: a table for people, ``--json`` for programs."""

from __future__ import annotations

import typer

from cyclora_client.admin_cli import keys, models, queue, quotas, storage, tenants, usage, workers
from cyclora_client.admin_cli.audit import audit
from cyclora_client.admin_cli.bootstrap import bootstrap

app = typer.Typer(help="Administer a running server.", no_args_is_help=True)
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(workers.app, name="workers")
app.add_typer(queue.app, name="queue")
app.add_typer(quotas.app, name="quotas")
app.command("cycles")(queue.list_cycles)
app.add_typer(storage.runs, name="runs")
app.add_typer(storage.checkpoints, name="checkpoints")
app.command("garbage")(storage.collect_garbage)
app.command("settings")(storage.show_settings)
app.command("usage")(usage.usage_of_tenants)
app.command()(audit)
app.command()(bootstrap)
app.add_typer(models.app, name="models")
