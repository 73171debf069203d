"""The world of quotas with administrators in it: they cancel, unload, drain, end and delete.

Every step of the store is asked for twice now and then, as when its answer was lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.builders import BASE_MODEL, submission
from core.test_store_checkpoints import checkpoint
from cyclora_core.clock import ManualClock
from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import OperationKind
from cyclora_core.placement import Action, Wish
from cyclora_core.quotas import QuotaUse
from cyclora_core.records import Checkpoint, Session
from cyclora_core.store import Store
from cyclora_core.store.connection import Connection
from cyclora_core.types import Cycle, PlannedModel, PlannedOperation
from scheduler.quota_world import Client, World

_STORED_LIMIT = 5000
_REPEATED = 0.2


@dataclass
class AdministeredWorld(World):
    """Also counts what is stored, and what the worker has in memory of passes."""

    saved: dict[str, Checkpoint] = field(default_factory=dict[str, Checkpoint])
    parts: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    """Of each pass that has begun in the worker's memory: its model, and the data that ran."""
    num_sessions: int = 2
    num_cancelled: int = 0
    num_let_go: int = 0
    num_expired: int = 0

    @classmethod
    async def make(cls, store: Store, clock: ManualClock, seed: int) -> AdministeredWorld:
        made = await super().make(store, clock, seed)
        assert isinstance(made, AdministeredWorld)
        for client in made.clients:
            await made._open(client)
        limited = made.clients[0].tenant_id
        quotas = dataclasses.replace(await store.quotas.of(limited), max_stored_bytes=_STORED_LIMIT)
        await store.tenants.update(limited, quotas=quotas)
        return made

    def lose_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the store asked twice for some of all steps from now on."""
        run = Connection.run

        async def asked(
            connection: Connection, script: str, keys: Sequence[str], args: Sequence[Any]
        ) -> Any:
            reply = await run(connection, script, keys, args)
            if self.rng.random() < _REPEATED:
                await run(connection, script, keys, args)
            return reply

        monkeypatch.setattr(Connection, "run", asked)

    async def _open(self, client: Client) -> None:
        now_ms = self.clock.now_ms()
        await self.store.sessions.create(
            Session(client.session_id, client.tenant_id, now_ms, now_ms)
        )

    def actions(self) -> dict[Callable[[], Awaitable[None]], int]:
        return super().actions() | {
            self.cancel_queue: 3,
            self.wish: 5,
            self.drain_worker: 2,
            self.delete: 1,
            self.end_session: 1,
        }

    async def cancel_queue(self) -> None:
        """Of one model, or of a tenant."""
        client = self.rng.choice(self.clients)
        tenant_id, queues = client.tenant_id, self.store.queues
        if client.next_seq_ids and self.rng.random() < 0.7:
            model_id = self.rng.choice(list(client.next_seq_ids))
            self.num_cancelled += await queues.cancel_model(tenant_id, model_id)
        else:
            self.num_cancelled += await queues.cancel_tenant(tenant_id)

    async def wish(self) -> None:
        client = self.rng.choice(self.clients)
        for model_id in self.rng.sample(
            list(client.next_seq_ids), min(1, len(client.next_seq_ids))
        ):
            wish = self.rng.choice(
                [Wish(Action.LOAD), Wish(Action.UNLOAD), Wish(Action.MOVE, self.worker_id)]
            )
            try:
                await self.store.placements.wish(model_id, wish)
            except UserError:
                [model] = await self.store.models.get_many([model_id])
                assert model.is_ended

    async def drain_worker(self) -> None:
        """For some looks, and then it serves again."""
        workers = self.store.workers
        await workers.set_draining(self.worker_id, True)
        for _ in range(self.rng.randint(1, 3)):
            await self.look()
            await self.settle()
        await workers.set_draining(self.worker_id, False)

    async def delete(self) -> None:
        if self.saved:
            path = self.rng.choice(list(self.saved))
            await self.store.checkpoints.delete(path)
            del self.saved[path]

    async def end_session(self) -> None:
        """By its client, or since nothing was heard of it; its models are unloaded."""
        client = self.rng.choice(self.clients)
        sessions, session_id = self.store.sessions, client.session_id
        if self.rng.random() < 0.5:
            last_ms = (await sessions.live())[session_id]
            if not await sessions.expire(session_id, last_ms, "nothing heard"):
                return
            self.num_expired += 1
        else:
            await sessions.finish(session_id, "done")
        for owner, seq_id in client.next_seq_ids.items():
            if owner.startswith(session_id):
                unload = OperationKind.UNLOAD_MODEL
                end = submission(unload, seq_id, owner_id=owner, tenant_id=client.tenant_id)
                assert await self.send(end)
                client.next_seq_ids[owner] += 1
        client.session_id = f"{self.num_sessions:08x}" + session_id[8:]
        self.num_sessions += 1
        await self._open(client)

    async def new_worker(self) -> None:
        await super().new_worker()
        self.parts.clear()

    async def settle(self) -> None:
        """Give models up too, as the worker does; now and then storage does not take one."""
        cycle = self.cycle
        if cycle is not None:
            await self._let_go(cycle)
        await super().settle()

    async def _let_go(self, cycle: Cycle) -> None:
        for model in cycle.let_go:
            note = "disk full" if self.rng.random() < 0.3 else ""
            # Whether or not storage takes the state: part of a pass is undone before.
            self.parts = {r: part for r, part in self.parts.items() if part[0] != model.model_id}
            await self.store.placements.let_go(
                BASE_MODEL, model.model_id, self.worker_id, model.epoch, note
            )
            self.num_let_go += not note

    async def _settle(self, model: PlannedModel, operation: PlannedOperation) -> None:
        request_id, part = operation.request_id, operation.datum_range
        if operation.kind.is_pass:
            start = part.start if part else 0
            _, num_ran = self.parts.pop(request_id, (model.model_id, 0))
            assert start in (0, num_ran), "the worker cannot go on there"
            if part:
                self.parts[request_id] = (model.model_id, part.stop)
        if operation.kind is OperationKind.SAVE_WEIGHTS and await self._is_pending(request_id):
            await self._save(model, request_id)
        await super()._settle(model, operation)

    async def _save(self, model: PlannedModel, request_id: str) -> None:
        """Under one of two names; what is beyond the quota is not there."""
        path = CheckpointPath(model.model_id, CheckpointKind.TRAINING, self.rng.choice("ab"))
        saved = checkpoint(
            path.name,
            self.clock.now_ms(),
            path=str(path),
            tenant_id=model.tenant_id,
            model_id=model.model_id,
            num_bytes=self.rng.randint(1, 2000),
            request_id=request_id,
            revision=request_id.rsplit(":", 1)[1],
        )
        try:
            assert await self.store.checkpoints.put(saved)
        except UserError:
            self.num_refused += 1
            return
        self.saved[saved.path] = saved

    async def recount(self, client: Client) -> QuotaUse:
        stored = [s.num_bytes for s in self.saved.values() if s.tenant_id == client.tenant_id]
        return dataclasses.replace(await super().recount(client), stored_bytes=sum(stored))

    async def drain(self) -> None:
        """As without administrators; afterwards nothing is stored."""
        await super().drain()
        for path in list(self.saved):
            await self.store.checkpoints.delete(path)
        self.saved.clear()
