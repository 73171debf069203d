"""JSON bodies of the routes below ``/admin/v1``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from cyclora_core.accounts import TENANT_SCOPES, Scope
from cyclora_server.wire.reading import Body


class AdminBody(Body):
    """What an administrator sends: read to the letter, since no old SDK sends it.

    Unknown fields are refused, and null is a value.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _read_nulls(cls, value: Any) -> Any:
        return value


def _printable(name: str) -> str:
    # Names are shown in tables of terminals, where a control character could hide another line.
    if not name.isprintable() or name != name.strip():
        raise ValueError("must be printable characters, with no space at either end")
    return name


Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
"""Of a tenant or of an API key, for people to tell them apart."""


class NewTenant(AdminBody):
    """``POST /admin/v1/tenants``."""

    name: Name = Field(min_length=1)


class ChangeTenant(AdminBody):
    """``PATCH /admin/v1/tenants/{tenant_id}``: what is left out stays as it is."""

    name: Name = Field(default="", min_length=1)

    def changes(self) -> dict[str, Any]:
        """The fields that were sent, for ``tenants.update``."""
        return self.model_dump(exclude_unset=True)


class NewKey(AdminBody):
    """``POST /admin/v1/keys``."""

    tenant_id: str
    name: Name = ""
    scopes: frozenset[Scope] = Field(default=TENANT_SCOPES, min_length=1)
