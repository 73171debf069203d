"""What was used, and sums of it by any of the things it can be told apart by.

Every amount is charged to exactly one project, run and API key of one tenant, as they were when it
was counted. So the sums over any partition agree, and moving a session later changes no sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

HOUR_S = 3600
_HOURS_OF_A_DAY = 24


class Meter(StrEnum):
    """What is counted."""

    TRAINING = "training"
    """Tokens through forward and backward passes, forward-only ones included."""
    PREFILL = "prefill"
    """Tokens of prompts that were computed while sampling."""
    CACHED_PREFILL = "cached_prefill"
    """Tokens of prompts that were found computed."""
    SAMPLED = "sampled"
    """Tokens drawn."""
    CHECKPOINT = "checkpoint"
    """Checkpoints saved under a name, and copies."""
    STORED = "stored"
    """Bytes of named checkpoints times the seconds that they were stored."""


COLUMNS: Mapping[Meter, str] = {
    Meter.TRAINING: "trained_tokens",
    Meter.PREFILL: "prefilled_tokens",
    Meter.CACHED_PREFILL: "cached_tokens",
    Meter.SAMPLED: "sampled_tokens",
    Meter.CHECKPOINT: "num_checkpoints",
    Meter.STORED: "stored_byte_seconds",
}
"""What each meter's sum is called, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Charge:
    """Whom of a tenant something is charged to."""

    base_model: str
    session_id: str
    project_id: str = ""
    """Of the session when it was counted."""
    run_id: str = ""
    """The model that was trained or saved; of a sample the one whose weights drew it, or "" where
    those were the base model's."""
    key_id: str = ""
    """The API key that sent the request; "" where that is not known."""


@dataclass(frozen=True, slots=True)
class Metered:
    """How much was used of one thing in one hour."""

    hour: int
    """Hours since the epoch."""
    meter: Meter
    charge: Charge
    amount: int


class GroupBy(StrEnum):
    """What sums can be told apart by."""

    TENANT = "tenant"
    PROJECT = "project"
    KEY = "key"
    RUN = "run"
    BASE_MODEL = "base_model"
    DAY = "day"
    HOUR = "hour"
    METER = "meter"


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The sums of one group."""

    group: Mapping[GroupBy, str]
    amounts: Mapping[str, int]
    """By the names of ``COLUMNS``; ``amount`` alone where meters are told apart."""


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Only what is charged to these; an empty set leaves out nothing."""

    projects: Collection[str] = field(default_factory=frozenset[str])
    keys: Collection[str] = field(default_factory=frozenset[str])
    runs: Collection[str] = field(default_factory=frozenset[str])
    base_models: Collection[str] = field(default_factory=frozenset[str])

    def has(self, charge: Charge) -> bool:
        return (
            _is_in(charge.project_id, self.projects)
            and _is_in(charge.key_id, self.keys)
            and _is_in(charge.run_id, self.runs)
            and _is_in(charge.base_model, self.base_models)
        )


def _is_in(value: str, chosen: Collection[str]) -> bool:
    return not chosen or value in chosen


_NAMES: Mapping[GroupBy, Callable[[str, Metered], str]] = {
    GroupBy.TENANT: lambda tenant_id, _: tenant_id,
    GroupBy.PROJECT: lambda _, row: row.charge.project_id,
    GroupBy.KEY: lambda _, row: row.charge.key_id,
    GroupBy.RUN: lambda _, row: row.charge.run_id,
    GroupBy.BASE_MODEL: lambda _, row: row.charge.base_model,
    GroupBy.DAY: lambda _, row: _day(row.hour),
    GroupBy.HOUR: lambda _, row: _hour(row.hour),
    GroupBy.METER: lambda _, row: row.meter,
}


def summed(
    rows: Iterable[tuple[str, Metered]], by: Sequence[GroupBy], chosen: UsageFilter
) -> list[UsageSum]:
    """Sums of what tenants used, in the order of their groups.

    ``rows`` are pairs of a tenant_id and what it used. Without ``by`` there is one sum of all.
    """
    names = [_NAMES[each] for each in by]
    found: dict[tuple[str, ...], dict[str, int]] = defaultdict(_amounts(by))
    for tenant_id, row in rows:
        if chosen.has(row.charge):
            column = "amount" if GroupBy.METER in by else COLUMNS[row.meter]
            found[tuple(name(tenant_id, row) for name in names)][column] += row.amount
    if not by and not found:
        found[()] = _amounts(by)()
    return [UsageSum(dict(zip(by, group, strict=True)), found[group]) for group in sorted(found)]


def _amounts(by: Sequence[GroupBy]) -> Callable[[], dict[str, int]]:
    columns = columns_of(by)
    return lambda: dict.fromkeys(columns, 0)


def columns_of(by: Sequence[GroupBy]) -> list[str]:
    """What the amounts of a sum are called."""
    return ["amount"] if GroupBy.METER in by else list(COLUMNS.values())


def _day(hour: int) -> str:
    return _at(hour - hour % _HOURS_OF_A_DAY).strftime("%Y-%m-%d")


def _hour(hour: int) -> str:
    return _at(hour).strftime("%Y-%m-%dT%H:00Z")


def _at(hour: int) -> datetime:
    return datetime.fromtimestamp(hour * HOUR_S, UTC)
