"""Gaps: requests of a model that were accepted and wait for an earlier one to arrive."""

from __future__ import annotations

from cyclora_core.store.connection import Connection


class Gaps:
    """What is known of the gaps without leading; the scheduler closes them."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def is_awaited(self, model_id: str, seq_id: int) -> bool:
        """Whether accepted requests of this model can only run once this one has arrived."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zscore(self._keys.gaps(), model_id)
            pipe.hget(self._keys.model(model_id), "logged_seq_id")
            since_ms, logged = await pipe.execute()
        return since_ms is not None and logged is not None and int(logged) + 1 == seq_id
