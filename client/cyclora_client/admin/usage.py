"""What was used, summed by any of what it can be told apart by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import httpx
from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp
from cyclora_core.usage import GroupBy


@dataclass(frozen=True)
class UsageRow:
    """The sums of one group."""

    group: dict[GroupBy, str]
    """The tenant, project, ... of the group, as far as it was asked for."""
    amounts: dict[str, int]
    """Tokens, checkpoints and byte-seconds; ``amount`` alone if grouped by meter."""


class Usage:
    """``/admin/v1/usage``, or with a tenant's key ``/api/v1/usage``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def sums(
        self,
        by: Sequence[GroupBy] = (),
        *,
        tenants: Iterable[str] = (),
        projects: Iterable[str] = (),
        keys: Iterable[str] = (),
        runs: Iterable[str] = (),
        base_models: Iterable[str] = (),
        starting_on: datetime | None = None,
        ending_before: datetime | None = None,
    ) -> list[UsageRow]:
        """Sums in the order of their groups; without ``by`` one sum of all.

        Both times are full hours; by default the last 31 days. What is chosen (several of one kind
        are any of them) leaves out all else.
        """
        query: dict[str, Any] = {
            "group_by": [str(each) for each in by],
            "tenant": list(tenants),
            "project": list(projects),
            "key": list(keys),
            "run": list(runs),
            "base_model": list(base_models),
        }
        for name, at in (("starting_on", starting_on), ("ending_before", ending_before)):
            if at is not None:
                query[name] = at.isoformat()
        return self._http.list(UsageRow, "usage", query)


def own_usage(
    base_url: str, api_key: str, transport: httpx.BaseTransport | None = None
) -> tuple[Usage, AdminHttp]:
    """The usage of the key's own tenant, and what is to be closed after it."""
    http = AdminHttp(base_url, api_key, transport, prefix="/api/v1")
    return Usage(http), http
