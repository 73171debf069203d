"""For how long sessions have shown no sign of life, by a clock that nobody sets.

The store's times are wall clocks of several machines, and a store or a network that was away for an
hour has heard of nobody for an hour. So a server measures itself for how long it has seen the same
last sign of life, and counts anew when it could not look in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Sighting:
    last_sign_ms: int
    since_mono_s: float


class SessionWatch:
    """What one server has seen of all sessions; another one, or after a restart, starts anew."""

    def __init__(self, timeout_s: float, max_blind_s: float) -> None:
        """Start with nothing seen.

        Units:
            ``timeout_s``: seconds without a sign of life after which a session is overdue.
            ``max_blind_s``: seconds between two looks beyond which nothing seen before counts.
        """
        self._timeout_s = timeout_s
        self._max_blind_s = max_blind_s
        self._seen: dict[str, _Sighting] = {}
        self._looked_at_mono_s: float | None = None

    def look(self, live: Mapping[str, int], now_mono_s: float) -> list[str]:
        """Take in the last sign of life of every session; returns those that are overdue.

        One that is overdue is so again only after another ``timeout_s``.
        """
        looked_at = self._looked_at_mono_s
        if looked_at is not None and now_mono_s - looked_at > self._max_blind_s:
            self._seen.clear()
        self._looked_at_mono_s = now_mono_s
        seen: dict[str, _Sighting] = {}
        overdue: list[str] = []
        for session_id, last_sign_ms in live.items():
            sighting = self._seen.get(session_id)
            if sighting is None or sighting.last_sign_ms != last_sign_ms:
                sighting = _Sighting(last_sign_ms, now_mono_s)
            elif now_mono_s - sighting.since_mono_s >= self._timeout_s:
                overdue.append(session_id)
                sighting = _Sighting(last_sign_ms, now_mono_s)
            seen[session_id] = sighting
        self._seen = seen
        return overdue
