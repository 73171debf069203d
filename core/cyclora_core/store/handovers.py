"""Sampler weights that were handed over in memory and are not in storage yet."""

from __future__ import annotations

from collections.abc import Sequence

from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointPath
from cyclora_core.store.connection import Connection


class Handovers:
    """Which saves of each model have their weights in a worker's memory only.

    As long as one is noted here, its weights can be made again from the model's snapshot and log,
    which nobody may drop from under it.
    """

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def begin(self, model_id: str, seq_id: int, path: str) -> None:
        """Note that the save ``seq_id`` of a model handed over the weights of a checkpoint."""
        await self._redis.hset(self._keys.handed_over(model_id), seq_id, path)

    async def end(self, model_id: str, seq_id: int) -> None:
        """Note that they are in storage, or that nobody can ask for them any more."""
        await self._redis.hdel(self._keys.handed_over(model_id), seq_id)

    async def of_model(self, model_id: str) -> dict[int, str]:
        """Paths of the checkpoints by the seq_id of the save, their revision; in order."""
        rows = await self._redis.hgetall(self._keys.handed_over(model_id))
        return dict(sorted((int(seq_id), path.decode()) for seq_id, path in rows.items()))

    async def holders(self, paths: Sequence[str]) -> dict[str, str]:
        """The worker that holds each of these paths' weights, of those not in storage yet.

        It is the one that its model is assigned to; whether that lives, the caller knows.
        """
        model_ids = sorted({model_id for path in paths if (model_id := _model_of(path))})
        if not model_ids:
            return {}
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in model_ids:
                pipe.hvals(self._keys.handed_over(model_id))
                pipe.hget(self._keys.model(model_id), "worker_id")
            rows = await pipe.execute()
        return {
            path.decode(): worker_id.decode()
            for held, worker_id in zip(rows[::2], rows[1::2], strict=True)
            for path in held
            if worker_id
        }


def _model_of(path: str) -> str | None:
    try:
        return CheckpointPath.parse(path).model_id
    except UserError:
        return None
