"""The client of ``/admin/v1``: one attribute for each kind of thing that is administered."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx

from cyclora_client.admin.audit import Audit
from cyclora_client.admin.cycles import CycleRows
from cyclora_client.admin.fleet import BaseModels, Workers
from cyclora_client.admin.http import AdminHttp
from cyclora_client.admin.keys import ApiKeys
from cyclora_client.admin.models import Models
from cyclora_client.admin.queue import Queue
from cyclora_client.admin.quotas import TenantsQuotas
from cyclora_client.admin.settings import Settings
from cyclora_client.admin.storage import Checkpoints, Garbage, Runs
from cyclora_client.admin.tenants import Tenants
from cyclora_client.admin.usage import Usage


class AdminClient:
    """Calls below ``/admin/v1`` with a key of the scope ``admin``.

    Every method raises a class of ``cyclora_core.errors``: ``Unauthorized`` for an unknown key,
    ``Forbidden`` for one that is not an admin key, ``NotFound``, ``UserError`` for anything else
    that was wrong with the request, ``Unavailable`` when no answer came or the server is busy,
    and ``ServerError`` when it failed.
    """

    def __init__(
        self, base_url: str, admin_key: str, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = AdminHttp(base_url, admin_key, transport)
        self.tenants = Tenants(self._http)
        self.keys = ApiKeys(self._http)
        self.audit = Audit(self._http)
        self.workers = Workers(self._http)
        self.models = Models(self._http)
        self.base_models = BaseModels(self._http)
        self.usage = Usage(self._http)
        self.queue = Queue(self._http)
        self.quotas = TenantsQuotas(self._http)
        self.cycles = CycleRows(self._http)
        self.runs = Runs(self._http)
        self.checkpoints = Checkpoints(self._http)
        self.garbage = Garbage(self._http)
        self.settings = Settings(self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
