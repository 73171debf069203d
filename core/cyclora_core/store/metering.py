"""What tenants used, by hour: counted in the same atomic step as what it is counted for.

The hour is that of whoever counts, by its own clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cyclora_core.store.connection import Connection

HOUR_S = 3600
HOUR_MS = HOUR_S * 1000
METERED_KEPT_S = 92 * 24 * 3600
"""How long the numbers of an hour can be asked for."""


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


@dataclass(frozen=True, slots=True)
class Metered:
    """How much was used of one thing in one hour."""

    hour: int
    """Hours since the epoch."""
    meter: Meter
    base_model: str
    session_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class StoredHour:
    """How many bytes of checkpoints a tenant had stored in one hour, times for how long."""

    hour: int
    byte_seconds: int


def hour_of(at_ms: int) -> int:
    return at_ms // HOUR_MS


def ms_left(at_ms: int) -> int:
    """Of the hour."""
    return HOUR_MS - at_ms % HOUR_MS


def bytes_field(hour: int) -> str:
    """Where the change of the bytes stored, in one hour, is summed up."""
    return f"{hour}:bytes"


def byte_seconds_field(hour: int) -> str:
    """Where the same is summed up, each change times the seconds that were left of the hour."""
    return f"{hour}:byte_seconds"


def meter_field(meter: Meter, base_model: str, session_id: str) -> str:
    """Where in the hash of an hour something is counted."""
    return json.dumps([meter, base_model, session_id])


class Metering:
    """The read side; settling and recording checkpoints write."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def used(self, tenant_id: str, from_hour: int, before_hour: int) -> list[Metered]:
        """All that was counted in those hours, oldest first."""
        hours = range(from_hour, before_hour)
        async with self._redis.pipeline(transaction=False) as pipe:
            for hour in hours:
                pipe.hgetall(self._keys.metered(tenant_id, hour))
            rows = await pipe.execute()
        return [
            _metered(hour, field, int(amount))
            for hour, row in zip(hours, rows, strict=True)
            for field, amount in sorted(row.items())
        ]

    async def stored(
        self, tenant_id: str, from_hour: int, before_hour: int, now_ms: int
    ) -> list[StoredHour]:
        """What was stored in each of those hours in which something was, oldest first.

        The hour of ``now_ms`` counts as far as it has come, later ones not at all, nor do those
        that are no longer kept.
        """
        from_hour = max(from_hour, hour_of(now_ms) - METERED_KEPT_S // HOUR_S)
        rows = await self._redis.hgetall(self._keys.stored(tenant_id))
        changes = {field.decode(): int(value) for field, value in rows.items()}
        return _integrated(changes, from_hour, before_hour, now_ms)


def _metered(hour: int, field: bytes, amount: int) -> Metered:
    meter, base_model, session_id = json.loads(field)
    return Metered(hour, Meter(meter), base_model, session_id, amount)


def _integrated(
    changes: Mapping[str, int], from_hour: int, before_hour: int, now_ms: int
) -> list[StoredHour]:
    """Bytes times seconds of each hour, from its changes.

    ::

        stored[h] = total at the start of h * 3600 + byte_seconds changed in h
        total at the start of h = sum of bytes changed before h

    A change of some bytes counts for the seconds that are left of its hour. What is left of the
    present hour has not been stored yet.
    """
    now_hour = hour_of(now_ms)
    total = sum(n for field, n in changes.items() if _is_bytes_before(field, from_hour))
    found: list[StoredHour] = []
    for hour in range(from_hour, min(before_hour, now_hour + 1)):
        byte_seconds = total * HOUR_S + changes.get(byte_seconds_field(hour), 0)
        total += changes.get(bytes_field(hour), 0)
        if hour == now_hour:
            byte_seconds -= round(total * ms_left(now_ms) / 1000)
        if byte_seconds > 0:
            found.append(StoredHour(hour, byte_seconds))
    return found


def _is_bytes_before(field: str, hour: int) -> bool:
    changed_hour, _, what = field.partition(":")
    return what == "bytes" and int(changed_hour) < hour
