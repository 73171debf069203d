"""The ``access_scope`` of listings: whose objects a client asks for."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import Query


class AccessScope(StrEnum):
    """Whose objects a client asks for."""

    OWNED = "owned"
    """The tenant's own."""
    ACCESSIBLE = "accessible"
    """Those of others too, as far as they are published."""


Scope = Annotated[AccessScope, Query(alias="access_scope")]
