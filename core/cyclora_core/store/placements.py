"""Which worker has which model, and where administrators want them."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence

from cyclora_core import codec
from cyclora_core.errors import NotFound, UserError
from cyclora_core.placement import Held, Place, PlacedModel, Wish
from cyclora_core.store.audit import Audit
from cyclora_core.store.connection import Connection
from cyclora_core.store.models import Models
from cyclora_core.waiting import HeldModel, WaitingWish

_NOWHERE = Held(Place.STORAGE, 0)


class Placements:
    """Wishes are noted with their model; the scheduler acts on them in its next cycles."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._models = Models(connection)
        self._audit = Audit(connection)

    async def wish(self, model_id: str, wish: Wish, by: str = "") -> None:
        """Have a model loaded, unloaded or moved; ``by`` is the key_id of who asked.

        Raises:
            NotFound: there is no such model.
            UserError: it has ended.
        """
        keys, model = self._keys, await self._models.get(model_id)
        if model is None:
            raise NotFound(f"model {model_id[:100]!r} does not exist")
        details = {
            "model_id": model_id,
            "tenant_id": model.tenant_id,
            "worker_id": wish.worker_id or None,
            "key_id": by or None,
        }
        entry = self._audit.entry(f"model_{wish.action}", details)
        reply = await self._connection.run(
            "wish",
            [
                keys.model(model_id),
                keys.placements(model.base_model),
                keys.wake(),
                keys.audit(model.tenant_id),
            ],
            [model_id, str(wish), *self._audit.script_args(entry)],
        )
        if reply == b"ended":
            raise UserError(f"model {model_id!r} has ended: it has no state any more")

    async def wishes(self, model_ids: Iterable[str]) -> builtins.list[WaitingWish]:
        """What is wished of these models; of one without a wish nothing."""
        ids = sorted(model_ids)
        if not ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in ids:
                names = ("wish", "tenant_id", "worker_id", "epoch", "is_ended")
                pipe.hmget(self._keys.model(model_id), names)
            rows = await pipe.execute()
        return [
            WaitingWish(
                HeldModel(model_id, row[1].decode(), row[2].decode() or None, int(row[3])),
                Wish.parse(row[0].decode()),
                row[4] == b"1",
            )
            for model_id, row in zip(ids, rows, strict=True)
            if row[0]
        ]

    async def end_wish(self, base_model: str, model_id: str, wish: Wish, note: str = "") -> None:
        """Forget a wish: it is fulfilled, or ``note`` says why it cannot be."""
        keys = [self._keys.model(model_id), self._keys.placements(base_model)]
        await self._connection.run("end_wish", keys, [model_id, str(wish), note])

    async def let_go(
        self, base_model: str, model_id: str, worker_id: str, epoch: int, note: str = ""
    ) -> bool:
        """Give a model up whose state is in storage, or say in ``note`` why it is not.

        Returns False when the model was assigned to another worker meanwhile.
        """
        keys = self._keys
        reply = await self._connection.run(
            "let_go",
            [
                keys.model(model_id),
                keys.worker_models(worker_id),
                keys.placements(base_model),
                keys.wake(),
            ],
            [worker_id, epoch, model_id, note],
        )
        return reply != b"fenced"

    async def of_worker(self, worker_id: str) -> builtins.list[HeldModel]:
        """The models that are assigned to a worker and have not ended."""
        key = self._keys.worker_models(worker_id)
        ids = sorted(row.decode() for row in await self._redis.hkeys(key))
        if not ids:
            return []
        models = [self._keys.model(model_id) for model_id in ids]
        rows = await self._connection.run("held_models", [key, *models], [worker_id, *ids])
        return [
            HeldModel(model_id.decode(), tenant_id.decode(), worker_id, int(epoch))
            for model_id, tenant_id, epoch in rows
        ]

    async def show(self, worker_id: str, changed: Mapping[str, Held | None]) -> None:
        """Say what a worker has in memory of models whose place changed; None: nothing."""
        args = [
            each
            for model_id, held in changed.items()
            for each in (model_id, codec.dump(held) if held else "")
        ]
        keys = [self._keys.worker(worker_id), self._keys.worker_models(worker_id)]
        await self._connection.run("show_held", keys, args)

    async def list(
        self, *, worker_id: str | None = None, tenant_id: str | None = None
    ) -> builtins.list[PlacedModel]:
        """The live models that a worker has, or a tenant; without either, all that matter.

        These are the models that some worker has, that have something to run, or that an
        administrator wants elsewhere; of a tenant also those that are in storage only.
        """
        if worker_id is not None:
            models = await self.placed([each.model_id for each in await self.of_worker(worker_id)])
            return [each for each in models if tenant_id in (None, each.model.tenant_id)]
        keys = self._keys
        if tenant_id is not None:
            rows = await self._redis.zrevrange(keys.models_of(tenant_id), 0, -1)
            return await self.placed([row.decode() for row in rows])
        workers = [row.decode() for row in await self._redis.smembers(keys.workers())]
        base_models = [row.decode() for row in await self._redis.hkeys(keys.base_models())]
        async with self._redis.pipeline(transaction=False) as pipe:
            for each in workers:
                pipe.hkeys(keys.worker_models(each))
            for name in base_models:
                pipe.smembers(keys.ready_models(name))
                pipe.smembers(keys.placements(name))
            found = await pipe.execute()
        return await self.placed(sorted({row.decode() for rows in found for row in rows}))

    async def placed(self, model_ids: Sequence[str]) -> builtins.list[PlacedModel]:
        """Where these models are, of those that exist and have not ended."""
        models = [each for each in await self._models.get_many(model_ids) if not each.is_ended]
        if not models:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for each in models:
                pipe.hmget(self._keys.model(each.model_id), ("wish", "wish_note"))
                pipe.hget(self._keys.worker_models(each.worker_id or ""), each.model_id)
            rows = await pipe.execute()
        return [
            PlacedModel(
                model,
                codec.load(Held, held) if held else _NOWHERE,
                Wish.parse(wish.decode()) if wish else None,
                note.decode() if note else "",
            )
            for model, (wish, note), held in zip(models, rows[::2], rows[1::2], strict=True)
        ]
