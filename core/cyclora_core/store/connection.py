"""One process's connection to Redis: client, keys, clock and the Lua scripts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cyclora_core.clock import Clock
from cyclora_core.errors import Unavailable
from cyclora_core.store.keys import Keys

# Every script is safe to run twice, so a lost answer is simply asked for again; a restart of
# Redis with its append-only file is survived without any caller noticing more than a pause.
_MAX_RETRIES = 20
_RETRY_CAP_S = 1.0
_RETRY_BASE_S = 0.02


_GONE = (RedisConnectionError, RedisTimeoutError, BusyLoadingError)


class _Pipeline(Pipeline):
    """Says in our words that Redis does not answer."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            return await super().execute(raise_on_error)
        except _GONE as error:
            raise Unavailable("the store does not answer; try again later") from error


class _Client(aioredis.Redis):
    """Says in our words that Redis does not answer, after all retries."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)
        except _GONE as error:
            raise Unavailable("the store does not answer; try again later") from error

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class Connection:
    """What the parts of the store share."""

    def __init__(self, client: aioredis.Redis, keys: Keys, clock: Clock) -> None:
        self.client: Any = client  # redis-py types every reply as a union with Awaitable
        self.keys = keys
        self.clock = clock
        self._scripts: dict[str, Any] = {}

    @classmethod
    def open(cls, redis_url: str, key_prefix: str, clock: Clock) -> Connection:
        client = _Client.from_url(
            redis_url,
            retry=Retry(ExponentialBackoff(cap=_RETRY_CAP_S, base=_RETRY_BASE_S), _MAX_RETRIES),
            retry_on_error=list(_GONE),
            health_check_interval=15,
        )
        return cls(client, Keys(key_prefix), clock)

    async def close(self) -> None:
        await self.client.aclose()

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        """Run one atomic step; the file of the same name documents its KEYS and ARGV."""
        if script not in self._scripts:
            folder = resources.files("cyclora_core.store") / "scripts"
            text = (folder / f"{script}.lua").read_text()
            self._scripts[script] = self.client.register_script(text)
        return await self._scripts[script](keys=keys, args=args)


def text(value: bytes | None) -> str:
    return value.decode() if value else ""


def as_dict(fields: dict[bytes, bytes]) -> dict[str, str]:
    """A Redis hash whose values are all text."""
    return {name.decode(): value.decode() for name, value in fields.items()}
