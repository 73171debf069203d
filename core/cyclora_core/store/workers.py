"""Workers: registered, leased, given cycles; and the base models they serve."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cyclora_core import codec
from cyclora_core.errors import NotFound
from cyclora_core.peft import ModuleGroup, TargetModule
from cyclora_core.records import WorkerStatus
from cyclora_core.store.audit import DEPLOYMENT, Audit
from cyclora_core.store.connection import Connection, as_dict
from cyclora_core.types import BaseModelInfo, Cycle, EndedCycle
from cyclora_core.waiting import WorkerStats

MAX_ENDED_CYCLES = 1000
"""Of each base model; beyond them the oldest go."""


class BaseModels:
    """What the workers said about the base models they serve."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def get(self, name: str) -> BaseModelInfo | None:
        data = await self._redis.hget(self._keys.base_models(), name)
        return codec.load(BaseModelInfo, data) if data else None

    async def list(self) -> list[BaseModelInfo]:
        rows = await self._redis.hvals(self._keys.base_models())
        return sorted((codec.load(BaseModelInfo, row) for row in rows), key=lambda m: m.name)

    async def put_target_modules(self, name: str, modules: Sequence[TargetModule]) -> None:
        """Say which linear layers of a base model can receive an adapter, in model order.

        Apart from its info, which every request reads: these are hundreds.
        """
        data = json.dumps([dataclasses.asdict(module) for module in modules])
        await self._redis.hset(self._keys.target_modules(), name, data)

    async def target_modules(self, name: str) -> list[TargetModule]:
        """In model order; none of a base model whose workers have not said."""
        data = await self._redis.hget(self._keys.target_modules(), name)
        rows: list[dict[str, Any]] = json.loads(data) if data else []
        return [
            TargetModule(
                row["name"],
                row["in_features"],
                row["out_features"],
                ModuleGroup(row["group"]),
                row["num_experts"],
                row["num_active_experts"],
            )
            for row in rows
        ]


class Workers:
    """The worker's side of the clock: register, stay alive, claim, release."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock
        self._audit = Audit(connection)
        self._listed_ids: Sequence[str] = []

    async def register(
        self,
        worker_id: str,
        worker_name: str,
        info: BaseModelInfo,
        lease_s: float,
        stats: WorkerStats,
    ) -> None:
        """Make a worker known; an earlier process of the same name loses its lease at once."""
        keys = self._keys
        earlier = await self._connection.run(
            "register_worker",
            [
                keys.worker(worker_id),
                keys.workers(),
                keys.worker_names(),
                keys.worker_lease(worker_id),
                keys.base_models(),
                keys.wake(),
            ],
            [
                worker_id,
                worker_name,
                round(lease_s * 1000),
                info.name,
                codec.dump(info),
                self._clock.now_ms(),
                codec.dump(stats),
            ],
        )
        if earlier:
            await self._redis.delete(keys.worker_lease(earlier.decode()))

    async def renew(self, worker_id: str, lease_s: float) -> bool:
        """Renew the lease; false when the worker was declared dead and must start anew."""
        reply = await self._connection.run(
            "renew",
            [self._keys.worker(worker_id), self._keys.worker_lease(worker_id)],
            [round(lease_s * 1000)],
        )
        return reply == b"alive"

    async def retire(self, worker_id: str) -> None:
        """Give the lease up at once, so that what is unfinished moves on without waiting."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.worker_lease(worker_id))
            pipe.lpush(self._keys.wake(), 1)
            pipe.ltrim(self._keys.wake(), 0, 0)
            await pipe.execute()

    async def claim(self, worker_id: str, last_cycle_id: int, wait_s: float) -> Cycle | None:
        """The worker's next cycle, waiting for it up to ``wait_s`` (0 looks once).

        The inbox only wakes the worker; the cycle itself stays in its record until released, so
        an answer lost with the connection loses no cycle.
        """
        cycle = await self._assigned(worker_id, last_cycle_id)
        if cycle is None and wait_s > 0:
            await self._redis.blpop([self._keys.worker_inbox(worker_id)], timeout=wait_s)
            cycle = await self._assigned(worker_id, last_cycle_id)
        return cycle

    async def _assigned(self, worker_id: str, last_cycle_id: int) -> Cycle | None:
        cycle_id, data = await self._redis.hmget(
            self._keys.worker(worker_id), ("cycle_id", "cycle")
        )
        if not cycle_id or int(cycle_id) <= last_cycle_id:
            return None
        return Cycle.from_json({**json.loads(data), "cycle_id": int(cycle_id)})

    async def release(
        self, worker_id: str, cycle_id: int, stats: WorkerStats, ended: EndedCycle | None = None
    ) -> None:
        """Say that the worker is free for its next cycle, and how the last one went."""
        base_model = ended.base_model if ended else ""
        await self._connection.run(
            "release",
            [
                self._keys.worker(worker_id),
                self._keys.wake(),
                self._keys.ended_cycles(base_model),
            ],
            [
                cycle_id,
                codec.dump(stats),
                codec.dump(ended) if ended else "",
                MAX_ENDED_CYCLES,
            ],
        )

    async def ended_cycles(self, base_model: str, limit: int) -> list[EndedCycle]:
        """The last cycles of a base model's workers, newest first.

        One whose worker died in it is not among them: its operations ran in another.
        """
        key = self._keys.ended_cycles(base_model)
        return [codec.load(EndedCycle, row) for row in await self._redis.lrange(key, 0, limit - 1)]

    async def running_cycles(self) -> list[Cycle]:
        """What the workers execute now."""
        rows = await self._redis.smembers(self._keys.workers())
        ids = sorted(row.decode() for row in rows)
        found = [await self._assigned(worker_id, 0) for worker_id in ids]
        return [cycle for cycle in found if cycle is not None]

    async def report(self, worker_id: str, stats: WorkerStats) -> None:
        """Say that room for samples changed, so that waiting ones are looked at again."""
        keys = [self._keys.worker(worker_id), self._keys.wake()]
        await self._connection.run("report", keys, [codec.dump(stats)])

    async def list(self) -> list[WorkerStatus]:
        """All workers that are registered, however many there are.

        In one round trip while they are those of the last time, else in two.
        """
        asked = self._listed_ids
        names, rows = await self._names_and_rows(asked)
        if names != asked:
            self._listed_ids = asked = names
            _, rows = await self._names_and_rows(asked)
        return [
            _status(worker_id, as_dict(fields), *counts)
            for worker_id, fields, *counts in zip(
                asked, *(rows[i::4] for i in range(4)), strict=True
            )
            if fields
        ]

    async def _names_and_rows(
        self, worker_ids: Sequence[str]
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Who is registered, and what is known of those that were asked for."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(self._keys.workers())
            for worker_id in worker_ids:
                pipe.hgetall(self._keys.worker(worker_id))
                pipe.exists(self._keys.worker_lease(worker_id))
                pipe.hlen(self._keys.worker_models(worker_id))
                pipe.hlen(self._keys.worker_samples(worker_id))
            names, *rows = await pipe.execute()
        return sorted(row.decode() for row in names), rows

    async def set_draining(self, worker_id: str, is_draining: bool, by: str = "") -> None:
        """Have a worker give up all that it has and take nothing new, or take that back.

        ``by`` is the key_id of who asked. A process that is started anew is another worker, and
        serves.

        Raises:
            NotFound: there is no such living worker.
        """
        event = "worker_drain" if is_draining else "worker_resume"
        entry = self._audit.entry(event, {"worker_id": worker_id, "key_id": by or None})
        reply = await self._connection.run(
            "set_draining",
            [
                self._keys.worker(worker_id),
                self._keys.worker_lease(worker_id),
                self._keys.wake(),
                self._keys.audit(DEPLOYMENT),
            ],
            ["1" if is_draining else "", *self._audit.script_args(entry)],
        )
        if reply == b"unknown":
            raise NotFound(f"worker {worker_id[:100]!r} does not exist, or has ended")


def _status(
    worker_id: str, fields: Mapping[str, str], is_alive: int, num_models: int, num_samples: int
) -> WorkerStatus:
    stats: dict[str, Any] = json.loads(fields["stats"])
    return WorkerStatus(
        worker_id=worker_id,
        base_model=fields["base_model"],
        registered_at_ms=int(fields["registered_at_ms"]),
        is_alive=bool(is_alive),
        cycle_id=int(fields["cycle_id"]) if fields["cycle_id"] else None,
        is_draining=fields.get("is_draining") == "1",
        num_models=num_models,
        num_samples=num_samples,
        info={"name": fields["name"], **stats},
    )
