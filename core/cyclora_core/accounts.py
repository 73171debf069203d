"""Who works here: tenants, what they may use, their API keys, and what was changed by whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

AuditValue = str | int | float | bool | None
"""Of one detail of an audit entry."""


class Scope(StrEnum):
    """What an API key may do; it may hold several."""

    TRAIN = "train"
    """Make and train models and sample from them; save, load and change checkpoints."""
    SAMPLE = "sample"
    """Sample from base models and checkpoints."""
    READ = "read"
    """List and read what the tenant has, and what it used."""
    ADMIN = "admin"
    """Administer the deployment: every tenant, worker and setting."""


TENANT_SCOPES = frozenset({Scope.TRAIN, Scope.SAMPLE, Scope.READ})
"""Of a key for which nothing else was asked."""


MAX_LIMIT = 10**15
"""Of any quota: the store's scripts count exactly up to about nine times this."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a tenant may use at most; None is without bound.

    Raises:
        ValueError: one is negative, or without use.
    """

    max_adapters: int | None = None
    """Models that have not ended."""
    max_rank: int | None = None
    """Of a new model, and of an adapter that is loaded or uploaded."""
    max_queued_tokens: int | None = None
    """Of operations and samples that are not final yet; zero lets one model's or one sample's in
    after the other."""
    max_concurrent_samples: int | None = None
    """Sequences of samples that are not final yet."""
    tokens_per_minute: int | None = None
    """Tokens of operations and samples that start; more waits, and nothing fails."""
    max_stored_bytes: int | None = None
    """Bytes of checkpoints that were saved under a name, copied or uploaded."""
    tokens_per_day: int | None = None
    """Metered tokens of one day, UTC: the budget of the day."""
    tokens_per_month: int | None = None
    """Metered tokens of one month, UTC: the budget of the month."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            limit = getattr(self, each.name)
            # No rate at all would keep what was accepted for ever.
            least = 1 if each.name in ("tokens_per_minute", "max_rank") else 0
            if limit is not None and not least <= limit <= MAX_LIMIT:
                raise ValueError(
                    f"{each.name} {limit} is not allowed; expected {least} to {MAX_LIMIT}, or "
                    "nothing for no bound"
                )


MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
"""Of a tenant. Whoever waits beside the heaviest still gets a part of each cycle."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One isolated party; owns API keys, sessions, models."""

    tenant_id: str
    name: str
    created_at_ms: int
    weight: float = 1.0
    """Its part of every clock cycle against that of the others who wait."""
    quotas: Quotas = field(default_factory=Quotas)
    is_enabled: bool = True
    """Whether its API keys open anything."""
    disabled_reason: str = ""
    """What its keys are told while it is not."""
    deleted_at_ms: int | None = None
    """Its record stays, so that its books can still be read."""
    is_purged: bool = False
    """Whether nothing is left of what it had when it was deleted."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of an API key; the key itself is shown once and only its hash is kept."""

    key_id: str
    tenant_id: str
    name: str
    scopes: frozenset[Scope]
    created_at_ms: int
    project_id: str | None = None
    """The project of every session that it opens; None lets the client choose."""
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes

    def has_expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and self.expires_at_ms <= now_ms

    def is_usable(self, now_ms: int) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at_ms is None and not self.has_expired(now_ms)


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """An API key together with whose it is, as they were at one moment."""

    key: ApiKey
    tenant: Tenant
    last_used_at_ms: int | None = None
    """To the minute; None for a key that was never used."""

    def is_usable(self, now_ms: int) -> bool:
        """Whether the key opens anything now."""
        return self.key.is_usable(now_ms) and self.tenant.is_enabled


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change that a tenant, or an administrator, can look up afterwards."""

    event: str
    """``{resource}_{action}``, such as ``checkpoint_delete``."""
    at_ms: int
    details: Mapping[str, AuditValue]
    entry_id: str
    """Keeps two equal changes of one millisecond apart."""
