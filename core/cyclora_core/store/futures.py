"""Futures: read repeatedly, waited for without polling, acknowledged or expired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cyclora_core import partials
from cyclora_core.errors import ErrorCategory
from cyclora_core.operations import OperationKind
from cyclora_core.partials import RECORD_BYTES, Progress
from cyclora_core.records import (
    ACKNOWLEDGED_KEPT_S,
    FETCHED_KEPT_S,
    FUTURE_KEPT_S,
    Completion,
    Future,
    FutureState,
    OperationError,
)
from cyclora_core.store.connection import Connection
from cyclora_core.store.patience import heeding_cancellation

FUTURE_TTL_MS = FUTURE_KEPT_S * 1000

_ACKNOWLEDGED_TTL_MS = ACKNOWLEDGED_KEPT_S * 1000

_CLONE_STRIDE = 1_000_000_000
_RECONNECT_PAUSE_S = 0.2

_log = structlog.get_logger()


def clone_of(seq_id: int) -> int:
    """The clone of a sampling client that made this seq_id (0 is the original)."""
    return seq_id // _CLONE_STRIDE


class Futures:
    """The read side of promises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._timeout_s = connection.timeout_s
        self.is_subscribed = False
        """Whether announcements arrive; for the one subscription that a process has."""

    async def get(self, request_id: str) -> Future | None:
        """The future as it stands; None when it is unknown or expired."""
        fields = await self._redis.hgetall(self._keys.future(request_id))
        if b"state" not in fields:
            return None
        error = None
        if b"error_message" in fields:
            error = OperationError(
                fields[b"error_message"].decode(), ErrorCategory(fields[b"error_category"].decode())
            )
        return Future(
            request_id=request_id,
            tenant_id=fields[b"tenant_id"].decode(),
            owner_id=fields[b"owner_id"].decode(),
            seq_id=int(fields[b"seq_id"]),
            kind=OperationKind(fields[b"kind"].decode()),
            state=FutureState(fields[b"state"].decode()),
            result=fields.get(b"result"),
            error=error,
        )

    async def progress(self, request_id: str, num_seen: int) -> Progress:
        """Tokens of a streamed sample after the first ``num_seen``, as far as they are shown.

        Once it is final nothing is shown any more; its result has them all.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.getrange(self._keys.partial(request_id), num_seen * RECORD_BYTES, -1)
            pipe.hget(self._keys.future(request_id), "state")
            data, state = await pipe.execute()
        is_final = state is None or FutureState(state.decode()) is not FutureState.PENDING
        return Progress(partials.decode(data), is_final)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[AsyncIterator[str], None]:
        """Request ids as they become final, and those of streamed samples as they get tokens.

        Yields "" first and after every reconnect: announcements may have been missed, so
        everything that is waited for must be looked at again.
        """
        async with aclosing(self._announcements()) as announcements:
            yield announcements

    async def _announcements(self) -> AsyncGenerator[str, None]:
        while True:
            # A new one each time: redis-py would reconnect an old one by itself, unnoticed by us,
            # and nobody would look again at what was announced in between.
            pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
            try:
                await heeding_cancellation(pubsub.subscribe(self._keys.settled_channel()))
                self.is_subscribed = True
                yield ""
                async with aclosing(self._messages(pubsub)) as messages:
                    async for request_id in messages:
                        yield request_id
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                _log.warning("announcements interrupted", cause=str(error))
            finally:
                self.is_subscribed = False
                await pubsub.aclose()
            await asyncio.sleep(_RECONNECT_PAUSE_S)

    async def _messages(self, pubsub: Any) -> AsyncGenerator[str, None]:
        """Announcements of one connection, until it is lost or has been silent for too long.

        A subscriber only listens, so a peer that vanished without closing would never be noticed:
        redis-py sends PINGs of its own here but does not miss their answers.
        """
        heard_s = time.monotonic()
        while True:
            getting = pubsub.get_message(timeout=self._timeout_s / 2)
            message = await heeding_cancellation(getting)
            if message is not None:
                heard_s = time.monotonic()
                if message["type"] == "message":
                    for request_id in message["data"].decode().split():
                        yield request_id
            elif time.monotonic() - heard_s >= self._timeout_s:
                raise RedisTimeoutError(f"nothing heard for {self._timeout_s:g} s")
            else:
                await heeding_cancellation(pubsub.ping())

    async def completions(
        self, sampling_session_id: str, clone_id: int, prev_cursor: int
    ) -> list[Completion]:
        """Samples of one client that became final after a cursor, in order."""
        key = self._keys.completions(sampling_session_id, clone_id)
        rows = await self._redis.zrangebyscore(key, f"({prev_cursor}", "+inf", withscores=True)
        states = await self._states([request_id.decode() for request_id, _ in rows])
        return [
            Completion(int(cursor), request_id.decode(), state)
            for (request_id, cursor), state in zip(rows, states, strict=True)
            if state is not None
        ]

    async def _states(self, request_ids: Sequence[str]) -> list[FutureState | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for request_id in request_ids:
                pipe.hget(self._keys.future(request_id), "state")
            rows = await pipe.execute()
        return [FutureState(row.decode()) if row else None for row in rows]

    async def fetched(self, request_id: str) -> None:
        """Note that a result was handed out; it can be fetched again for a while."""
        keys = [self._keys.future(request_id)]
        await self._connection.run("fetched", keys, [FETCHED_KEPT_S * 1000])

    async def acknowledge(self, request_ids: Sequence[str]) -> None:
        """Let go of results that their client says it holds; unsettled futures are kept.

        The record stays a while as a tombstone, so that a late retry of the submission finds
        that it ran instead of running again.
        """
        states = await self._states(request_ids)
        async with self._redis.pipeline(transaction=False) as pipe:
            for request_id, state in zip(request_ids, states, strict=True):
                if state not in (None, FutureState.PENDING):
                    pipe.pexpire(self._keys.future(request_id), _ACKNOWLEDGED_TTL_MS)
            await pipe.execute()
