"""Sampling sessions: rights to sample from one fixed set of weights."""

from __future__ import annotations

from cyclora_core import codec
from cyclora_core.records import SamplingSession
from cyclora_core.store.connection import Connection


class SamplingSessions:
    """They outlive every process."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def create(self, record: SamplingSession) -> SamplingSession:
        """Record a sampling session, or return the one that has this id already."""
        key = self._keys.sampling_session(record.sampling_session_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(key, "record", codec.dump(record))
            pipe.zadd(
                self._keys.samplers_of_session(record.session_id),
                {record.sampling_session_id: record.created_at_ms},
                nx=True,
            )
            pipe.hget(key, "record")
            *_, stored = await pipe.execute()
        return codec.load(SamplingSession, stored)

    async def number(self, record: SamplingSession, count: int, kept_s: int) -> int:
        """The first of ``count`` seq_ids that no other request of this sampling session gets.

        For requests that their clients do not number. The record is made if it is not there, and
        goes ``kept_s`` after its last use. Numbers begin at its creation in milliseconds, so that
        one made anew later does not repeat those of the one before.
        """
        key = self._keys.sampling_session(record.sampling_session_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(key, "record", codec.dump(record))
            pipe.hsetnx(key, "next_seq_id", record.created_at_ms)
            pipe.hincrby(key, "next_seq_id", count)
            pipe.expire(key, kept_s)
            *_, next_seq_id, _ = await pipe.execute()
        return int(next_seq_id) - count

    async def get(self, sampling_session_id: str) -> SamplingSession | None:
        key = self._keys.sampling_session(sampling_session_id)
        data = await self._redis.hget(key, "record")
        return codec.load(SamplingSession, data) if data else None

    async def join(self, sampling_session_id: str) -> int:
        """A clone id that no other client of this sampling session has; 0 is the original."""
        key = self._keys.sampling_session(sampling_session_id)
        return int(await self._redis.hincrby(key, "num_clones", 1))

    async def of_session(self, session_id: str) -> list[str]:
        rows = await self._redis.zrange(self._keys.samplers_of_session(session_id), 0, -1)
        return [row.decode() for row in rows]
