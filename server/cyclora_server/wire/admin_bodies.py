"""JSON bodies of the routes below ``/admin/v1``."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, model_validator

from cyclora_core.accounts import MAX_LIMIT, MAX_WEIGHT, MIN_WEIGHT, TENANT_SCOPES, Scope
from cyclora_server.garbage import DEFAULT_GRACE_S, MIN_GRACE_S
from cyclora_server.wire.reading import Body

MAX_LIFETIME_S = 10 * 366 * 24 * 3600
"""Of an API key that is to end: longer than anybody plans."""


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

Reason = Annotated[str, Field(max_length=500), AfterValidator(_printable)]
"""Why something is as it is, for those whom it concerns."""


class NewTenant(AdminBody):
    """``POST /admin/v1/tenants``."""

    name: Name = Field(min_length=1)


class ChangeTenant(AdminBody):
    """``PATCH /admin/v1/tenants/{tenant_id}``: what is left out stays as it is."""

    name: Name = Field(default="", min_length=1)
    weight: float = Field(default=1.0, ge=MIN_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)
    """Its part of every clock cycle against that of the others who wait."""
    is_enabled: bool = True
    disabled_reason: Reason = ""

    def changes(self) -> dict[str, Any]:
        """The fields that were sent, for ``tenants.update``."""
        return self.model_dump(exclude_unset=True)


Limit = Annotated[int, Field(ge=0, le=MAX_LIMIT)]
AtLeastOne = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


class SetQuotas(AdminBody):
    """``PUT /admin/v1/tenants/{tenant_id}/quotas``: what is left out stays as it is."""

    max_adapters: Limit | None = None
    max_rank: AtLeastOne | None = None
    max_queued_tokens: Limit | None = None
    max_concurrent_samples: Limit | None = None
    tokens_per_minute: AtLeastOne | None = None
    max_stored_bytes: Limit | None = None
    tokens_per_day: Limit | None = None
    tokens_per_month: Limit | None = None


class MoveModel(AdminBody):
    """``POST /admin/v1/models/{model_id}/move``."""

    worker_id: str = Field(min_length=1)


class NewKey(AdminBody):
    """``POST /admin/v1/keys``."""

    tenant_id: str
    name: Name = ""
    scopes: frozenset[Scope] = Field(default=TENANT_SCOPES, min_length=1)
    project_id: str | None = None
    expires_at: AwareDatetime | None = None
    lifetime_s: int | None = Field(default=None, ge=1, le=MAX_LIFETIME_S)

    @model_validator(mode="after")
    def _ends_once(self) -> Self:
        if self.expires_at is not None and self.lifetime_s is not None:
            raise ValueError("expires_at and lifetime_s were both sent; a key ends once")
        return self

    def expires_at_ms(self, now_ms: int) -> int | None:
        """When the key ends, in ms since the epoch; None if it does not."""
        if self.lifetime_s is not None:
            return now_ms + self.lifetime_s * 1000
        return None if self.expires_at is None else round(self.expires_at.timestamp() * 1000)


class CancelQueued(AdminBody):
    """``POST /admin/v1/queue/cancel``: exactly one of these."""

    tenant_id: str | None = Field(default=None, max_length=200)
    model_id: str | None = Field(default=None, max_length=200)
    request_id: str | None = Field(default=None, max_length=200)
    """Of a sample."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        named = [each for each in (self.tenant_id, self.model_id, self.request_id) if each]
        if len(named) != 1:
            raise ValueError("expected exactly one of tenant_id, model_id, request_id")
        return self


class CollectGarbage(AdminBody):
    """``POST /admin/v1/garbage``."""

    dry_run: bool = True
    grace_s: int = Field(default=DEFAULT_GRACE_S, ge=MIN_GRACE_S, le=366 * 24 * 3600)
    """Seconds for which nothing is garbage after it was last changed."""
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """That of a dry run, to free nothing but what it told."""
