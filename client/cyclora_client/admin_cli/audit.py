"""``cyclora admin audit``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from cyclora_client.admin_cli.shared import DEFAULT_URL, AdminKey, AsJson, Url, admin_client, show

_Time = typer.Option(help="Such as 2030-01-31T18:00:00, local time.")


def audit(
    admin_key: AdminKey,
    tenant_id: Annotated[str | None, typer.Argument(help="All tenants if not given.")] = None,
    event: Annotated[
        str | None, typer.Option(help="An event or its beginning, such as checkpoint_delete.")
    ] = None,
    from_: Annotated[datetime | None, typer.Option("--from", help=_Time.help)] = None,
    before: Annotated[datetime | None, _Time] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List who changed what, newest first."""
    with admin_client(url, admin_key) as client:
        found = client.audit.list(tenant_id, event=event, from_=from_, before=before, limit=limit)
        show(found, as_json)
