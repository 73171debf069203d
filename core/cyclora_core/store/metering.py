"""What tenants used, by hour: counted in the same atomic step as what it is counted for.

The hour is that of whoever counts, by its own clock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from cyclora_core.store.connection import Connection
from cyclora_core.usage import HOUR_S, Charge, Meter, Metered

HOUR_MS = HOUR_S * 1000
METERED_KEPT_S = 92 * 24 * 3600
"""How long the numbers of an hour can be asked for."""

_MAX_HOURS_AHEAD = 24
"""How far the clock of who counts may be ahead of that of who reads."""

# Fields beside those of the meters: changes of the bytes stored, and each times the seconds that
# were left of its hour.
_STORED_BYTES = "stored_bytes"
_STORED_BYTE_SECONDS = "stored_byte_seconds"

_Hours = Mapping[int, Mapping[str, Mapping[Charge, int]]]
"""hour -> name of what is counted -> whom it is charged to -> amount"""


def hour_of(at_ms: int) -> int:
    return at_ms // HOUR_MS


def ms_left(at_ms: int) -> int:
    """Of the hour."""
    return HOUR_MS - at_ms % HOUR_MS


class Metering:
    """The read side; settling and recording checkpoints write."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def used(self, tenant_id: str, from_hour: int, before_hour: int) -> list[Metered]:
        """All that was counted in those hours but what was stored, oldest first."""
        hours, _ = await self._read(tenant_id, range(from_hour, before_hour))
        return list(_counted(hours, from_hour, before_hour))

    async def stored(
        self, tenant_id: str, from_hour: int, before_hour: int, now_ms: int
    ) -> list[Metered]:
        """The byte-seconds of each of those hours in which something was stored, oldest first.

        The hour of ``now_ms`` counts as far as it has come, later ones not at all, nor do those
        that are no longer kept.
        """
        found = await self.usage(tenant_id, from_hour, before_hour, now_ms)
        return [each for each in found if each.meter is Meter.STORED]

    async def usage(
        self, tenant_id: str, from_hour: int, before_hour: int, now_ms: int
    ) -> list[Metered]:
        """What was counted and what was stored in those hours, as of one moment."""
        now_hour = hour_of(now_ms)
        from_hour = max(from_hour, now_hour - METERED_KEPT_S // HOUR_S)
        # What was stored then is what is stored now, less all that has changed since.
        hours, stored_now = await self._read(
            tenant_id, range(from_hour, now_hour + _MAX_HOURS_AHEAD)
        )
        return [
            *_counted(hours, from_hour, before_hour),
            *integrated(stored_now, hours, from_hour, before_hour, now_ms),
        ]

    async def stored_bytes(self, tenant_id: str) -> int:
        """Of the tenant's named checkpoints, now."""
        return sum(int(row) for row in await self._redis.hvals(self._keys.stored(tenant_id)))

    async def _read(self, tenant_id: str, hours: range) -> tuple[_Hours, Mapping[Charge, int]]:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._keys.stored(tenant_id))
            for hour in hours:
                pipe.hgetall(self._keys.metered(tenant_id, hour))
            stored, *rows = await pipe.execute()
        found: dict[int, dict[str, dict[Charge, int]]] = {}
        for hour, row in zip(hours, rows, strict=True):
            for field, amount in sorted(row.items()):
                name, *charge = json.loads(field)
                found.setdefault(hour, {}).setdefault(name, {})[Charge(*charge)] = int(amount)
        return found, {Charge(*json.loads(field)): int(n) for field, n in stored.items()}


def _counted(hours: _Hours, from_hour: int, before_hour: int) -> Iterable[Metered]:
    for hour, names in hours.items():
        if not from_hour <= hour < before_hour:
            continue
        for name, amounts in names.items():
            if name in (_STORED_BYTES, _STORED_BYTE_SECONDS):
                continue
            for charge, amount in amounts.items():
                yield Metered(hour, Meter(name), charge, amount)


def integrated(
    stored_now: Mapping[Charge, int], hours: _Hours, from_hour: int, before_hour: int, now_ms: int
) -> list[Metered]:
    """Bytes times seconds of each hour, from what is stored now and each hour's changes.

    ::

        stored[h] = total at the start of h * 3600 + byte_seconds changed in h
        total at the start of h = stored now - sum of bytes changed in h and after it

    A change of some bytes counts for the seconds that are left of its hour. What is left of the
    present hour has not been stored yet.
    """
    now_hour = hour_of(now_ms)
    total = defaultdict(int, stored_now)
    newest_first: list[Metered] = []
    for hour in range(max(hours, default=now_hour), now_hour, -1):
        for charge, changed in hours.get(hour, {}).get(_STORED_BYTES, {}).items():
            total[charge] -= changed
    for hour in range(now_hour, from_hour - 1, -1):
        changes = hours.get(hour, {})
        byte_seconds = dict[Charge, int](changes.get(_STORED_BYTE_SECONDS, {}))
        if hour == now_hour:
            for charge, num_bytes in total.items():
                left = round(num_bytes * ms_left(now_ms) / 1000)
                byte_seconds[charge] = byte_seconds.get(charge, 0) - left
        for charge, changed in changes.get(_STORED_BYTES, {}).items():
            total[charge] -= changed
        for charge in total.keys() | byte_seconds.keys():
            amount = total[charge] * HOUR_S + byte_seconds.get(charge, 0)
            if amount > 0 and hour < before_hour:
                newest_first.append(Metered(hour, Meter.STORED, charge, amount))
    return newest_first[::-1]
