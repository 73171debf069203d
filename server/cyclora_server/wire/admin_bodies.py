"""JSON bodies of the routes below ``/admin/v1``."""

from __future__ import annotations

from pydantic import Field

from cyclora_core.accounts import TENANT_SCOPES, Scope
from cyclora_server.wire.bodies import Body


class NewTenant(Body):
    """``POST /admin/v1/tenants``."""

    name: str = Field(min_length=1, max_length=200)


class NewKey(Body):
    """``POST /admin/v1/keys``."""

    tenant_id: str
    name: str = Field(default="", max_length=200)
    scopes: frozenset[Scope] = Field(default=TENANT_SCOPES, min_length=1)
