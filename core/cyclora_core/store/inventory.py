"""Everything of all tenants that takes space: for administrators, and to find what nobody needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cyclora_core import codec
from cyclora_core.records import Checkpoint
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.store.connection import Connection
from cyclora_core.store.models import Models
from cyclora_core.types import ModelRecord

_AT_ONCE = 500


class Inventory:
    """Runs and checkpoints whoever's they are, those that have expired included."""

    def __init__(self, connection: Connection, models: Models) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock
        self._models = models

    async def tenant_ids(self) -> list[str]:
        return sorted(row.decode() for row in await self._redis.hkeys(self._keys.tenants()))

    async def runs(self, tenant_id: str | None = None) -> list[ModelRecord]:
        """Newest first, of each tenant."""
        found: list[ModelRecord] = []
        for owner in [tenant_id] if tenant_id else await self.tenant_ids():
            rows = await self._redis.zrevrange(self._keys.models_of(owner), 0, -1)
            for page in _pages([row.decode() for row in rows]):
                found += await self._models.get_many(page)
        return found

    async def checkpoints(
        self, tenant_id: str | None = None, *, with_unlisted: bool = False
    ) -> list[Checkpoint]:
        """Newest first, of each tenant; without a name only if asked for."""
        keys = self._keys
        paths: list[str] = []
        for owner in [tenant_id] if tenant_id else await self.tenant_ids():
            rows = await self._redis.zrevrange(keys.checkpoints_of(owner), 0, -1)
            paths += [row.decode() for row in rows]
            if with_unlisted:
                paths += await self._unlisted(owner)
        found: list[Checkpoint] = []
        for page in _pages(paths):
            rows = await self._redis.mget([keys.checkpoint(path) for path in page])
            found += [codec.load(Checkpoint, row) for row in rows if row]
        return found

    async def _unlisted(self, tenant_id: str) -> list[str]:
        rows = await self._redis.zrange(self._keys.models_of(tenant_id), 0, -1)
        paths: list[str] = []
        for page in _pages([row.decode() for row in rows]):
            async with self._redis.pipeline(transaction=False) as pipe:
                for model_id in page:
                    pipe.smembers(self._keys.unlisted_of_model(model_id))
                found = await pipe.execute()
            paths += sorted(row.decode() for members in found for row in members)
        return paths

    async def handed_over(self, model_ids: Sequence[str]) -> set[str]:
        """Paths of checkpoints of these models whose files are still to be written."""
        paths: set[str] = set()
        for page in _pages(model_ids):
            async with self._redis.pipeline(transaction=False) as pipe:
                for model_id in page:
                    pipe.hvals(self._keys.handed_over(model_id))
                found = await pipe.execute()
            paths |= {row.decode() for rows in found for row in rows}
        return paths

    async def doomed_later(self) -> set[CheckpointFiles]:
        """Files that somebody is writing: they are doomed for a time that has not come."""
        now_ms = self._clock.now_ms()
        rows = await self._redis.zrangebyscore(self._keys.doomed_files(), f"({now_ms}", "+inf")
        return {CheckpointFiles(*row.decode().split(" ")) for row in rows}

    async def ended_runs(
        self, tenant_id: str, before_ms: int, offset: int, limit: int
    ) -> tuple[list[ModelRecord], bool]:
        """Some of a tenant's runs that ended and were last used before then, oldest first.

        They are chosen from ``limit`` runs behind ``offset``; false when there are none further.
        """
        rows = await self._redis.zrangebyscore(
            self._keys.models_of(tenant_id), "-inf", before_ms, offset, limit
        )
        models = await self._models.get_many([row.decode() for row in rows])
        ended = [each for each in models if each.is_ended and each.last_request_at_ms < before_ms]
        return ended, len(rows) == limit

    async def drop_run(self, model: ModelRecord) -> bool:
        """Forget a run that has ended; false when it has checkpoints or its session lives."""
        keys, model_id = self._keys, model.model_id
        reply = await self._connection.run(
            "drop_run",
            [
                keys.model(model_id),
                keys.log(model_id),
                keys.held(model_id),
                keys.failed(model_id),
                keys.handed_over(model_id),
                keys.checkpoints_of_model(model_id),
                keys.unlisted_of_model(model_id),
                keys.models_of(model.tenant_id),
                keys.models_of_session(model.session_id),
                keys.live_sessions(),
            ],
            [model_id, model.session_id],
        )
        return reply == 1


def _pages(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
