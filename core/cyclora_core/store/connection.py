"""One process's connection to Redis: client, keys, clock and the Lua scripts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from importlib import resources
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cyclora_core.clock import Clock
from cyclora_core.store.keys import Keys
from cyclora_core.store.patience import Patience

DEFAULT_TIMEOUT_S = 20.0
"""Longer than anything the store does takes, and than any blocking call waits (2 seconds)."""

_MAX_CONNECT_S = 5.0
_HEALTH_CHECK_S = 15
"""A connection that was idle this long is asked whether it lives before a command relies on it."""

_MAX_AT_ONCE = 64
"""Commands of one process under way at one time, each on a connection of its own; others wait their
turn. A thousand polls that are woken at once would else open a thousand connections, which takes
the store longer than all their commands."""

_NEW_WORK = frozenset({"submit", "submit_sample", "create_custom_loss"})
_READS = frozenset({"gather", "find_keys"})
_COUNT_DEMAND = frozenset(
    {
        "submit",
        "submit_sample",
        "settle",
        "settle_sample",
        "cancel_sample",
        "cancel_operations",
        "close_gap",
        "dispatch",
        "put_checkpoint",
        "record_copy",
    }
)
_CHANGE_CHECKPOINTS = frozenset({"put_checkpoint", "drop_checkpoint", "record_copy"})
_METER = _CHANGE_CHECKPOINTS | {"settle", "settle_sample", "cancel_sample"}

# Redis refuses a script for want of memory only at its first write, and only if that write could
# take memory; DEL cannot. So a script that begins with this one, of a key that never exists, runs
# to its end however full the store is. Anything else would lock up a full store for ever: settling,
# leases and dispatching are what makes it emptier.
_EVEN_WHEN_FULL = "redis.call('DEL', KEYS[1] .. ':never')\n"


class _Pipeline(Pipeline):
    """A pipeline that is repeated as a whole while the store is in trouble."""

    patience: Patience
    at_once: asyncio.Semaphore

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)

        async def attempt() -> list[Any]:
            # Executing empties the stack, also when it fails.
            self.command_stack = list(commands)
            async with self.at_once:
                return await super(_Pipeline, self).execute(raise_on_error)

        return await self.patience.persist(attempt)


class _Client(aioredis.Redis):
    """A client whose commands are repeated while the store is in trouble."""

    patience: Patience
    at_once: asyncio.Semaphore

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await self.patience.persist(lambda: self._once(*args, **options))

    async def _once(self, *args: Any, **options: Any) -> Any:
        async with self.at_once:
            return await super().execute_command(*args, **options)

    async def ping_now(self) -> None:
        """PING with no more patience than for a restart of the store."""
        await self.patience.persist(lambda: self._once("PING"), patience_s=0.0)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipe = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.patience, pipe.at_once = self.patience, self.at_once
        return pipe


class Connection:
    """What the parts of the store share."""

    def __init__(
        self, client: aioredis.Redis, keys: Keys, clock: Clock, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.client: Any = client  # redis-py types every reply as a union with Awaitable
        self.keys = keys
        self.clock = clock
        self.timeout_s = timeout_s
        self._scripts: dict[str, Any] = {}

    @classmethod
    def open(
        cls,
        redis_url: str,
        key_prefix: str,
        clock: Clock,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patience_s: float = 0.0,
    ) -> Connection:
        """Prepare connections that never wait for a silent peer longer than ``timeout_s``.

        A peer that vanishes without closing (its machine lost power, a firewall forgot the
        connection) looks like one that takes long to answer; only time tells them apart. The
        command is then sent again on a new connection.

        Units:
            ``timeout_s``: seconds one answer may take. Must be longer than the 2 seconds of the
            longest blocking call and than the largest transfer takes.
            ``patience_s``: seconds that a change is repeated which the store refuses for want of
            memory or disk. 0 fails at once, which is right for whoever can tell a client to come
            back; who holds work that is done waits instead. A store that cannot be reached is
            waited for this long too, and at least for ``patience.RECONNECT_S``.
        """
        options: dict[str, Any] = {}
        if not redis_url.startswith("unix"):
            # Also ends connections that nobody waits on, within about the same time.
            options = {"socket_keepalive": True, "socket_keepalive_options": _keepalive(timeout_s)}
        client: Any = _Client.from_url(  # which is annotated as returning a plain client
            redis_url,
            # Bounded by ``at_once``, which waits; the pool itself would raise.
            max_connections=2 * _MAX_AT_ONCE,
            # Repeating is Patience's: redis-py nests its retries, of the command around those of
            # the connection, and their product would be hours of connecting to a dead address.
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=min(timeout_s, _MAX_CONNECT_S),
            health_check_interval=_HEALTH_CHECK_S,
            **options,
        )
        client.patience = Patience(patience_s)
        client.at_once = asyncio.Semaphore(_MAX_AT_ONCE)
        return cls(client, Keys(key_prefix), clock, timeout_s)

    async def ping(self) -> None:
        """Raise if the store cannot be reached, however patient this connection is otherwise.

        Raises:
            Unavailable: nobody answers.
        """
        await self.client.ping_now()

    async def close(self) -> None:
        await self.client.aclose()

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        """Run one atomic step; the file of the same name documents its KEYS and ARGV.

        Raises:
            Unavailable: the store was in trouble for longer than patience lasts. Of a refusal
                nothing was done; of a lost answer, the same step again finds out.
        """
        if script not in self._scripts:
            folder = resources.files("cyclora_core.store") / "scripts"
            text = (folder / f"{script}.lua").read_text()
            if script in _CHANGE_CHECKPOINTS:
                text = (folder / "account.lua").read_text() + text
            if script in _METER:
                text = (folder / "meter.lua").read_text() + text
            if script in _COUNT_DEMAND:
                text = (folder / "demand.lua").read_text() + text
            if script not in _NEW_WORK | _READS:
                text = _EVEN_WHEN_FULL + text
            self._scripts[script] = self.client.register_script(text)
        return await self._scripts[script](keys=keys, args=args)


def text(value: bytes | None) -> str:
    return value.decode() if value else ""


def as_dict(fields: dict[bytes, bytes]) -> dict[str, str]:
    """A Redis hash whose values are all text."""
    return {name.decode(): value.decode() for name, value in fields.items()}


def _keepalive(timeout_s: float) -> dict[int, int]:
    """Options by which the kernel finds a dead peer within about ``timeout_s``."""
    num_probes = 3
    interval_s = max(1, round(timeout_s / (2 * num_probes)))
    wanted = {
        "TCP_KEEPIDLE": max(1, round(timeout_s / 2)),
        "TCP_KEEPINTVL": interval_s,
        "TCP_KEEPCNT": num_probes,
    }
    # macOS has no TCP_KEEPIDLE.
    return {getattr(socket, name): n for name, n in wanted.items() if hasattr(socket, name)}
