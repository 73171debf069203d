"""Tenants that do anything in any order, with a real scheduler and a worker that may die."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from core.builders import BASE_MODEL, SESSION_ID, add_worker, sample, submission
from cyclora_core import ids
from cyclora_core.accounts import Quotas
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory, Overloaded, Unavailable, UserError
from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.quotas import QuotaUse
from cyclora_core.records import FutureState, NewModel, OperationError, Submission, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.store.operations import Outcome
from cyclora_core.types import Cycle, PlannedModel, PlannedOperation, PlannedSample
from cyclora_core.waiting import WorkerStats
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.settings import SchedulerSettings

KINDS = (
    OperationKind.FORWARD_BACKWARD,
    OperationKind.FORWARD_BACKWARD,
    OperationKind.FORWARD,
    OperationKind.OPTIM_STEP,
    OperationKind.SAVE_WEIGHTS,
    OperationKind.UNLOAD_MODEL,
)
_REFUSED = OperationError("refused", ErrorCategory.USER)


@dataclass
class Client:
    """One tenant's models and samples."""

    tenant_id: str
    session_id: str
    next_seq_ids: dict[str, int] = field(default_factory=dict[str, int])
    """Of each model."""
    num_samples: int = 0


@dataclass
class World:
    """What was accepted, beside the store that must agree about it."""

    store: Store
    clock: ManualClock
    rng: random.Random
    scheduler: Scheduler
    clients: Sequence[Client] = ()
    sent: dict[str, Submission] = field(default_factory=dict[str, Submission])
    """All that was accepted, by request_id."""
    metered: dict[str, int] = field(default_factory=dict[str, int])
    """Tokens by tenant."""
    cycle: Cycle | None = None
    worker_id: str = ""
    num_workers: int = 0
    num_refused: int = 0
    settled_samples: float = 0.9
    """The part of samples that end in the cycle that they began in; others wait for a death."""
    final: set[str] = field(default_factory=set[str])
    """Futures that were seen to be, and stay so."""
    released: set[int] = field(default_factory=set[int])
    """Cycles that are over."""

    @classmethod
    async def make(cls, store: Store, clock: ManualClock, seed: int) -> World:
        """Two tenants, of which one has every quota that holds work back."""
        settings = SchedulerSettings(
            min_cycle_tokens=40, max_cycle_tokens=40, coalesce_ms=0, gap_timeout_s=20
        )

        async def wait(seconds: float) -> None:
            clock.advance(max(seconds, 0.001))

        world = cls(store, clock, random.Random(seed), Scheduler(store, settings, clock, wait))
        clients: list[Client] = []
        for number in range(2):
            tenant = await store.tenants.create(f"tenant {number}")
            session_id = SESSION_ID[:-1] + str(number)
            clients.append(Client(tenant.tenant_id, session_id))
        limits = {
            "max_adapters": 2,
            "max_queued_tokens": 200,
            "max_concurrent_samples": 3,
            "tokens_per_minute": 300,
            "tokens_per_day": 4000,
        }
        await store.tenants.update(clients[0].tenant_id, quotas=limits)
        world.clients = clients
        await world.new_worker()
        return world

    async def new_worker(self) -> None:
        self.num_workers += 1
        self.worker_id = f"worker-{self.num_workers}"
        await add_worker(self.store, self.worker_id, "worker", free_sample_tokens=120)
        self.cycle = None

    async def step(self) -> None:
        """Something happens, as likely as its number says."""
        actions = self.actions()
        [action] = self.rng.choices(list(actions), list(actions.values()))
        await action()

    def actions(self) -> dict[Callable[[], Awaitable[None]], int]:
        """What may happen, and how likely each is."""
        return {
            self.train: 8,
            self.draw: 5,
            self.repeat: 3,
            self.cancel: 2,
            self.create: 2,
            self.look: 8,
            self.settle: 12,
            self.die: 2,
            self.wait: 3,
        }

    async def send(self, made: Submission) -> bool:
        try:
            outcome = await self.store.operations.submit(made)
        except (Overloaded, Unavailable, UserError):
            self.num_refused += 1
            return False
        if outcome is SubmitOutcome.ACCEPTED:
            assert made.request_id not in self.sent
            self.sent[made.request_id] = made
        return outcome is SubmitOutcome.ACCEPTED

    async def create(self) -> None:
        client = self.rng.choice(self.clients)
        owner = ids.model_id(client.session_id, len(client.next_seq_ids))
        made = submission(OperationKind.CREATE_MODEL, 0, owner_id=owner, tenant_id=client.tenant_id)
        made = dataclasses.replace(made, new_model=NewModel(client.session_id, LoraConfig(8)))
        if await self.send(made):
            client.next_seq_ids[owner] = 1

    async def train(self) -> None:
        client = self.rng.choice(self.clients)
        if not client.next_seq_ids:
            return
        owner = self.rng.choice(list(client.next_seq_ids))
        # Now and then one is left out: a gap.
        seq_id = client.next_seq_ids[owner] + (self.rng.random() < 0.15)
        kind = self.rng.choices(KINDS, [4, 3, 1, 4, 1, 0.4])[0]
        sizes = [self.rng.randint(1, 60) for _ in range(self.rng.randint(1, 3))]
        made = submission(
            kind,
            seq_id,
            owner_id=owner,
            tenant_id=client.tenant_id,
            datum_tokens=sizes if kind.is_pass else (),
            body=str(sizes).encode(),
        )
        if self.rng.random() < 0.1:
            made = dataclasses.replace(made, error=_REFUSED)
        if await self.send(made):
            client.next_seq_ids[owner] = max(client.next_seq_ids[owner], seq_id + 1)

    async def draw(self) -> None:
        client = self.rng.choice(self.clients)
        client.num_samples += 1
        made = sample(
            client.num_samples, tenant_id=client.tenant_id, num_tokens=self.rng.randint(1, 80)
        )
        owner = ids.sampling_session_id(client.session_id, 0)
        await self.send(
            dataclasses.replace(
                made,
                owner_id=owner,
                request_id=ids.request_id(owner, client.num_samples),
                num_samples=self.rng.randint(1, 3),
            )
        )

    async def repeat(self) -> None:
        if self.sent:
            made = self.rng.choice(list(self.sent.values()))
            assert await self.store.operations.submit(made) is SubmitOutcome.DUPLICATE

    async def cancel(self) -> None:
        drawn = [s for s in self.sent.values() if s.kind is OperationKind.SAMPLE]
        if drawn:
            made = self.rng.choice(drawn)
            await self.store.cancellations.cancel(
                made.tenant_id, BASE_MODEL, made.owner_id, made.seq_id
            )

    async def look(self) -> None:
        """The scheduler looks, and the worker claims what it dispatched."""
        await self.scheduler.tick()
        if self.cycle is None:
            self.cycle = await self.store.workers.claim(self.worker_id, 0, 0)
            if self.cycle is not None and self.cycle.cycle_id in self.released:
                self.cycle = None

    async def settle(self) -> None:
        """The worker settles all of its cycle, some of it twice, and is free."""
        cycle = self.cycle
        if cycle is None:
            return
        for model in cycle.models:
            for operation in model.operations:
                await self._settle(model, operation)
        for each in cycle.samples:
            if self.rng.random() < self.settled_samples:
                await self._settle_sample(each)
        self.released.add(cycle.cycle_id)
        stats = WorkerStats(free_sample_tokens=120, max_sample_tokens=120)
        await self.store.workers.release(self.worker_id, cycle.cycle_id, stats)
        self.cycle = None

    async def _settle(self, model: PlannedModel, operation: PlannedOperation) -> None:
        made = self.sent[operation.request_id]
        part = operation.datum_range
        if part is not None and part.stop < len(made.datum_tokens):
            return
        has_failed = operation.kind.is_pass and self.rng.random() < 0.1
        outcome = Outcome(
            None if has_failed else b"done", _REFUSED if has_failed else None, made.num_tokens
        )
        is_first = await self._is_pending(operation.request_id)
        for _ in range(self.rng.choice((1, 1, 2))):
            await self.store.operations.settle(
                worker_id=self.worker_id,
                epoch=model.epoch,
                tenant_id=model.tenant_id,
                base_model=BASE_MODEL,
                model_id=model.model_id,
                operation=operation,
                outcome=outcome,
            )
        if is_first and not has_failed and operation.kind.is_pass:
            self._meter(model.tenant_id, made.num_tokens)

    async def _settle_sample(self, planned: PlannedSample) -> None:
        made = self.sent[planned.request_id]
        prompt = made.num_tokens // 2
        drawn = self.rng.randint(0, made.num_tokens - prompt)
        is_first = await self._is_pending(planned.request_id)
        for _ in range(self.rng.choice((1, 1, 2))):
            await self.store.operations.settle_sample(
                worker_id=self.worker_id,
                tenant_id=planned.tenant_id,
                base_model=BASE_MODEL,
                sampling_session_id=planned.sampling_session_id,
                seq_id=planned.seq_id,
                request_id=planned.request_id,
                outcome=Outcome(b"done", num_tokens=drawn),
                num_prefilled_tokens=prompt,
                num_cached_tokens=7,
            )
        if is_first:
            self._meter(planned.tenant_id, prompt + drawn)

    def _meter(self, tenant_id: str, num_tokens: int) -> None:
        self.metered[tenant_id] = self.metered.get(tenant_id, 0) + num_tokens

    async def die(self) -> None:
        """The worker is gone with all it had, and another one comes."""
        await self.store.workers.retire(self.worker_id)
        await self.new_worker()

    async def wait(self) -> None:
        self.clock.advance(self.rng.choice((0.1, 5.0, 30.0)))

    async def drain(self) -> None:
        """Let everything come to its end: quotas are lifted, gaps given up, models unloaded."""
        for client in self.clients:
            await self.store.tenants.update(client.tenant_id, quotas=Quotas())
        self.settled_samples = 1.0
        await self.die()
        await self._run_out()
        for client in self.clients:
            for owner, seq_id in client.next_seq_ids.items():
                unload = OperationKind.UNLOAD_MODEL
                end = submission(unload, seq_id, owner_id=owner, tenant_id=client.tenant_id)
                assert await self.send(end)
        await self._run_out()

    async def _run_out(self) -> None:
        for _ in range(1000):
            self.clock.advance(5)
            await self.look()
            is_idle = self.cycle is None and not await self.store.cycles.gaps()
            await self.settle()
            if is_idle and (await self.store.cycles.gather(BASE_MODEL, 1, 1)).is_empty:
                return
        raise AssertionError("something never ran")

    async def _is_pending(self, request_id: str) -> bool:
        if request_id in self.final:
            return False
        future = await self.store.futures.get(request_id)
        is_pending = future is not None and future.state is FutureState.PENDING
        if not is_pending:
            self.final.add(request_id)
        return is_pending

    async def recount(self, client: Client) -> QuotaUse:
        """The use of a tenant as its futures and models tell it."""
        queued = [
            made
            for made in self.sent.values()
            if made.tenant_id == client.tenant_id and await self._is_pending(made.request_id)
        ]
        models = await self.store.models.get_many(list(client.next_seq_ids))
        tokens = self.metered.get(client.tenant_id, 0)
        return QuotaUse(
            operations=len(queued),
            samples=sum(made.num_samples for made in queued),
            tokens=sum(made.num_tokens for made in queued),
            adapters=sum(not model.is_ended for model in models),
            tokens_today=tokens,
            tokens_this_month=tokens,
        )

    async def use(self, client: Client) -> QuotaUse:
        found = await self.store.quotas.use(client.tenant_id)
        return dataclasses.replace(found, startable_tokens=None)
