"""Sessions of connected clients, from the first sign of life to the end of the cleaning up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cyclora_core import codec
from cyclora_core.records import EXPIRED, Session
from cyclora_core.store.audit import Audit
from cyclora_core.store.connection import Connection, text

_IDEMPOTENCY_TTL_S = 3600
_MAX_PENDING_LOOKED_AT = 1000


class Sessions:
    """Connected client processes, kept alive by heartbeats and by what they send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock
        self._audit = Audit(connection)

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
            # Apart, since every settled operation is charged to it and records may be large.
            "project_id": session.project_id or "",
        }
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.session(session.session_id), mapping=fields)
            pipe.zadd(
                self._keys.sessions_of(session.tenant_id),
                {session.session_id: session.created_at_ms},
            )
            pipe.zadd(
                self._keys.live_sessions(), {session.session_id: session.last_heartbeat_at_ms}
            )
            await pipe.execute()
        return session

    async def get(self, session_id: str) -> Session | None:
        found = await self.get_many([session_id])
        return found.get(session_id)

    async def get_many(self, session_ids: Sequence[str]) -> dict[str, Session]:
        """Those that exist, by id, in the order asked for."""
        names = (
            "record",
            "last_heartbeat_at_ms",
            "finished_reason",
            "finished_detail",
            "project_id",
        )
        async with self._redis.pipeline(transaction=False) as pipe:
            for session_id in session_ids:
                pipe.hmget(self._keys.session(session_id), names)
            rows = await pipe.execute()
        return {
            session_id: _session(row)
            for session_id, row in zip(session_ids, rows, strict=True)
            if row[0] is not None
        }

    async def heartbeat(self, session_id: str) -> None:
        keys = [self._keys.session(session_id), self._keys.live_sessions()]
        await self._connection.run("heartbeat", keys, [session_id, self._clock.now_ms()])

    async def finish(self, session_id: str, reason: str, detail: str | None = None) -> bool:
        """End a session; false when it had ended: the first reason stands.

        What it leaves is then to be cleaned up: ``ending`` finds it until ``cleaned_up`` was told.
        """
        keys = self._keys
        reply = await self._connection.run(
            "end_session",
            [
                keys.session(session_id),
                keys.live_sessions(),
                keys.ending_sessions(),
                *await self._losses_keys(session_id),
            ],
            [session_id, reason, detail or "", self._clock.now_ms()],
        )
        return reply == b"ended"

    async def live(self) -> dict[str, int]:
        """The sessions that have not ended, each with its last sign of life in milliseconds.

        Signs of life are heartbeats and submissions.
        """
        rows = await self._redis.zrange(self._keys.live_sessions(), 0, -1, withscores=True)
        return {row.decode(): int(score) for row, score in rows}

    async def expire(self, session_id: str, last_sign_ms: int, detail: str) -> bool:
        """End a session whose client is gone; false when it is not, or when work is left.

        ``last_sign_ms`` is the sign of life after which there was none, as ``live`` told it.
        """
        keys = self._keys
        models = [row.decode() for row in await self._members(keys.models_of_session(session_id))]
        rows = await self._redis.srandmember(
            keys.pending_samples(session_id), _MAX_PENDING_LOOKED_AT
        )
        samples = [row.decode() for row in rows]
        reply = await self._connection.run(
            "expire_session",
            [
                keys.session(session_id),
                keys.live_sessions(),
                keys.ending_sessions(),
                keys.models_of_session(session_id),
                keys.pending_samples(session_id),
                *await self._losses_keys(session_id),
                *(key for each in models for key in (keys.model(each), keys.held(each))),
                *(keys.future(each) for each in samples),
            ],
            [
                session_id,
                EXPIRED,
                detail,
                self._clock.now_ms(),
                last_sign_ms,
                len(models),
                *samples,
            ],
        )
        return reply == b"ended"

    async def _losses_keys(self, session_id: str) -> list[str]:
        """Where the custom losses of a session are, which end with it."""
        session = await self.get(session_id)
        tenant_id = "" if session is None else session.tenant_id
        keys = self._keys
        return [keys.custom_losses_of_session(session_id), keys.custom_losses_of(tenant_id)]

    async def _members(self, key: str) -> list[bytes]:
        return await self._redis.zrange(key, 0, -1)

    async def ending(self, for_s: float, limit: int) -> list[str]:
        """Sessions that ended that long ago and are not cleaned up yet, oldest first."""
        before_ms = self._clock.now_ms() - round(for_s * 1000)
        rows = await self._redis.zrangebyscore(
            self._keys.ending_sessions(), "-inf", before_ms, 0, limit
        )
        return [row.decode() for row in rows]

    async def postpone(self, session_id: str) -> None:
        """Have ``ending`` find a session later again, behind the others."""
        now_ms = self._clock.now_ms()
        await self._redis.zadd(self._keys.ending_sessions(), {session_id: now_ms}, xx=True)

    async def cleaned_up(self, session_id: str) -> None:
        await self._redis.zrem(self._keys.ending_sessions(), session_id)

    async def assign_project(self, session: Session, project_id: str, by: str) -> None:
        """Move a session, and with it its runs and checkpoints, into a project.

        ``by`` is the key_id of who asked.
        """
        entry = self._audit.entry(
            "project_assign_session",
            {
                "session_id": session.session_id,
                "project_id": project_id,
                "previous_project_id": session.project_id,
                "key_id": by,
            },
        )
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.session(session.session_id), "project_id", project_id)
            self._audit.write(pipe, session.tenant_id, entry)
            await pipe.execute()

    async def list(self, tenant_id: str, offset: int, limit: int) -> list[Session]:
        """Newest first."""
        key = self._keys.sessions_of(tenant_id)
        rows = await self._redis.zrevrange(key, offset, offset + limit - 1)
        found = await self.get_many([row.decode() for row in rows])
        return list(found.values())

    async def older_than(
        self, tenant_id: str, created_at_ms: int, session_id: str, limit: int
    ) -> list[Session]:
        """The next sessions in the order of the list, behind one of a time and an id."""
        key = self._keys.sessions_of(tenant_id)
        same_ms = await self._redis.zrevrangebyscore(key, created_at_ms, created_at_ms)
        ids = [row.decode() for row in same_ms if row.decode() < session_id]
        older = await self._redis.zrevrangebyscore(key, f"({created_at_ms}", "-inf", 0, limit)
        ids = [*ids, *(row.decode() for row in older)][:limit]
        return list((await self.get_many(ids)).values())


def _session(row: Sequence[Any]) -> Session:
    record, heartbeat, reason, detail, project_id = row
    session = codec.load(Session, record)
    return dataclasses.replace(
        session,
        last_heartbeat_at_ms=int(heartbeat),
        finished_reason=text(reason) or None,
        finished_detail=text(detail) or None,
        project_id=text(project_id) or session.project_id,
    )
