"""Sessions of connected clients, and the sampling sessions they opened."""

from __future__ import annotations

import dataclasses

from cyclora_core import codec
from cyclora_core.records import SamplingSession, Session
from cyclora_core.store.connection import Connection, text

_IDEMPOTENCY_TTL_S = 3600


class Sessions:
    """Connected client processes, kept alive by heartbeats."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock

    async def create(self, session: Session, idempotency_key: str | None = None) -> Session:
        """Record a session, or return the one that the same idempotency key made before."""
        if idempotency_key:
            once = self._keys.session_by_idempotency(session.tenant_id, idempotency_key)
            is_first = await self._redis.set(
                once, session.session_id, nx=True, ex=_IDEMPOTENCY_TTL_S
            )
            if not is_first:
                earlier = await self.get(text(await self._redis.get(once)))
                if earlier is not None:
                    return earlier
        fields = {
            "record": codec.dump(session),
            "last_heartbeat_at_ms": session.last_heartbeat_at_ms,
        }
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.session(session.session_id), mapping=fields)
            pipe.zadd(
                self._keys.sessions_of(session.tenant_id),
                {session.session_id: session.created_at_ms},
            )
            await pipe.execute()
        return session

    async def get(self, session_id: str) -> Session | None:
        names = ("record", "last_heartbeat_at_ms", "finished_reason")
        record, heartbeat, reason = await self._redis.hmget(self._keys.session(session_id), names)
        if record is None:
            return None
        return dataclasses.replace(
            codec.load(Session, record),
            last_heartbeat_at_ms=int(heartbeat),
            finished_reason=text(reason) or None,
        )

    async def heartbeat(self, session_id: str) -> None:
        key = self._keys.session(session_id)
        await self._redis.hset(key, "last_heartbeat_at_ms", self._clock.now_ms())

    async def finish(self, session_id: str, reason: str) -> None:
        """End a session; the first reason stands."""
        await self._redis.hsetnx(self._keys.session(session_id), "finished_reason", reason)

    async def list(self, tenant_id: str, offset: int, limit: int) -> list[Session]:
        """Newest first."""
        rows = await self._redis.zrevrange(
            self._keys.sessions_of(tenant_id), offset, offset + limit - 1
        )
        found = [await self.get(row.decode()) for row in rows]
        return [session for session in found if session is not None]


class SamplingSessions:
    """Rights to sample from one fixed set of weights; they outlive every process."""

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
            await pipe.execute()
        stored = await self.get(record.sampling_session_id)
        return stored or record

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
