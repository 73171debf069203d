"""Random histories against a real Valkey: what is told was used is what a plain count says.

Requests of several keys train, sample, save, overwrite, copy, expire and delete; sessions move
between projects, workers die in the middle, and everything is settled more than once.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import defaultdict

import pytest

from core.builders import BASE_MODEL, add_worker, submission
from core.test_store_checkpoints import checkpoint
from core.test_store_cycles import sample_cycle
from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory, FencedOut
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.records import Checkpoint, NewModel, OperationError, Session
from cyclora_core.store import Store
from cyclora_core.store.metering import HOUR_MS, hour_of
from cyclora_core.store.operations import Outcome, SettleOutcome
from cyclora_core.types import Cycle, PlannedModel, PlannedOperation
from cyclora_core.usage import Charge, GroupBy, Meter, Metered, UsageFilter, summed
from cyclora_core.waiting import Assignment, WorkerStats

TENANTS = ("tenant-a", "tenant-b")
KEYS = ("key-1", "key-2", "key-3")
PROJECTS = ("paper", "default", "course")
NUM_STEPS = 120


@dataclasses.dataclass
class Run:
    """A model, and what was sent to it that is not settled."""

    model_id: str
    tenant_id: str
    next_seq_id: int = 0
    waiting: list[tuple[PlannedOperation, str]] = dataclasses.field(default_factory=list)
    """With the key that sent each."""


class History:
    """Does something to the store, and counts by itself what that uses."""

    def __init__(self, store: Store, clock: ManualClock, seed: int) -> None:
        self._store = store
        self._clock = clock
        self._random = random.Random(seed)
        self._runs: list[Run] = []
        self._projects: dict[str, str] = {}
        self._sessions: dict[str, Session] = {}
        self._saved: dict[str, tuple[Checkpoint, Charge]] = {}
        self._numbers = itertools.count(1)
        self.counted: dict[tuple[str, int, Meter, Charge], int] = defaultdict(int)
        self._stored: list[tuple[str, int, int, Charge]] = []

    async def play(self) -> None:
        """Some tenants' sessions and models, and then whatever comes."""
        for name in ("worker-1", "worker-2"):
            await add_worker(self._store, name, name)
        await self._store.cycles.lead("t", 3600)
        for number in range(4):
            await self._open(number, TENANTS[number % 2])
        does = [
            (self._train, 6),
            (self._settle, 8),
            (self._sample, 3),
            (self._save, 4),
            (self._copy, 2),
            (self._delete, 2),
            (self._expire, 1),
            (self._move, 1),
            (self._wait, 6),
        ]
        for _ in range(NUM_STEPS):
            [act] = self._random.choices([act for act, _ in does], [n for _, n in does])
            await act()

    async def _open(self, number: int, tenant_id: str) -> None:
        session_id = f"{number:08x}-0000-4000-8000-000000000000"
        project = self._random.choice([None, *PROJECTS])
        session = Session(session_id, tenant_id, 0, 0, project_id=project)
        self._sessions[session_id] = session
        self._projects[session_id] = project or "default"
        await self._store.sessions.create(session)
        for model_number in range(2):
            run = Run(ids.model_id(session_id, model_number), tenant_id)
            self._runs.append(run)
            await self._send(run, OperationKind.CREATE_MODEL)

    async def _send(self, run: Run, kind: OperationKind) -> None:
        key, seq_id = self._random.choice(KEYS), run.next_seq_id
        run.next_seq_id += 1
        session_id = ids.session_of(run.model_id)
        sent = submission(kind, seq_id, owner_id=run.model_id, tenant_id=run.tenant_id, key_id=key)
        new_model = NewModel(session_id, LoraConfig(8)) if seq_id == 0 else None
        await self._store.operations.submit(dataclasses.replace(sent, new_model=new_model))
        run.waiting.append((PlannedOperation(sent.request_id, kind, seq_id), key))

    def _count(self, tenant_id: str, meter: Meter, charge: Charge, amount: int) -> None:
        if amount:
            self.counted[tenant_id, hour_of(self._clock.now_ms()), meter, charge] += amount

    def _charge(self, owner_id: str, run_id: str, key: str) -> Charge:
        session_id = ids.session_of(owner_id)
        return Charge(BASE_MODEL, session_id, self._projects[session_id], run_id, key)

    async def _train(self) -> None:
        kinds = [OperationKind.FORWARD, OperationKind.FORWARD_BACKWARD, OperationKind.OPTIM_STEP]
        await self._send(self._random.choice(self._runs), self._random.choice(kinds))

    async def _assign(self, run: Run, worker_id: str) -> int:
        """The epoch under which a worker may now settle all that waits of a run."""
        waiting = await self._store.cycles.gather(BASE_MODEL, 100, 100)
        [model] = [each for each in waiting.models if each.model_id == run.model_id]
        operations = [operation for operation, _ in run.waiting]
        planned = PlannedModel(run.model_id, run.tenant_id, model.epoch + 1, operations)
        assignment = Assignment(planned, model.worker_id, model.epoch)
        cycle = Cycle(0, BASE_MODEL, worker_id, [planned], [])
        cycle_id = await self._store.cycles.dispatch("t", cycle, [assignment], [])
        assert isinstance(cycle_id, int)
        await self._store.workers.release(worker_id, cycle_id, WorkerStats())
        return planned.epoch

    async def _settle(self) -> None:
        """One operation, by the second worker if the first is declared dead in between."""
        busy = [run for run in self._runs if run.waiting]
        if not busy:
            return
        run = self._random.choice(busy)
        operation, key = run.waiting[0]
        num_tokens = self._random.randrange(1, 50)
        error = OperationError("no", ErrorCategory.USER) if self._random.random() < 0.2 else None

        async def settle(worker_id: str, epoch: int) -> SettleOutcome:
            return await self._store.operations.settle(
                worker_id=worker_id,
                epoch=epoch,
                tenant_id=run.tenant_id,
                base_model=BASE_MODEL,
                model_id=run.model_id,
                operation=operation,
                outcome=Outcome(None if error else b"r", error, num_tokens=num_tokens),
            )

        epoch = await self._assign(run, "worker-1")
        worker_id = "worker-1"
        if self._random.random() < 0.3:
            worker_id, dead = "worker-2", epoch
            epoch = await self._assign(run, worker_id)
            with pytest.raises(FencedOut):
                await settle("worker-1", dead)
        for number in range(self._random.randrange(1, 4)):
            outcome = await settle(worker_id, epoch)
            assert outcome is (SettleOutcome.ALREADY if number else SettleOutcome.SETTLED)
        run.waiting.pop(0)
        if error is None and operation.kind.is_pass:
            charge = self._charge(run.model_id, run.model_id, key)
            self._count(run.tenant_id, Meter.TRAINING, charge, num_tokens)

    async def _sample(self) -> None:
        """From a base model, or from anybody's checkpoint; charged to who samples."""
        sampling = self._random.choice(self._runs)
        source = self._random.choice([None, *self._runs])
        owner_id = ids.sampling_session_id(ids.session_of(sampling.model_id), 0)
        key, seq_id = self._random.choice(KEYS), next(self._numbers)
        sent = submission(
            OperationKind.SAMPLE,
            seq_id,
            owner_id=owner_id,
            tenant_id=sampling.tenant_id,
            key_id=key,
        )
        path = f"tinker://{source.model_id}/sampler_weights/s" if source else None
        await self._store.operations.submit(dataclasses.replace(sent, weights_path=path))
        waiting = (await self._store.cycles.gather(BASE_MODEL, 100, 100)).samples
        cycle_id = await self._store.cycles.dispatch("t", sample_cycle(waiting), [], waiting)
        assert isinstance(cycle_id, int)
        await self._store.workers.release("worker-1", cycle_id, WorkerStats())
        prefilled, cached, drawn = (self._random.randrange(30) for _ in range(3))
        for _ in range(self._random.randrange(1, 3)):
            await self._store.operations.settle_sample(
                worker_id="worker-1",
                tenant_id=sampling.tenant_id,
                base_model=BASE_MODEL,
                sampling_session_id=owner_id,
                seq_id=seq_id,
                request_id=sent.request_id,
                outcome=Outcome(b"r", num_tokens=drawn),
                num_prefilled_tokens=prefilled,
                num_cached_tokens=cached,
            )
        charge = self._charge(owner_id, source.model_id if source else "", key)
        for meter, amount in (
            (Meter.PREFILL, prefilled),
            (Meter.CACHED_PREFILL, cached),
            (Meter.SAMPLED, drawn),
        ):
            self._count(sampling.tenant_id, meter, charge, amount)

    def _note_stored(self, tenant_id: str, charge: Charge, num_bytes: int) -> None:
        self._stored.append((tenant_id, self._clock.now_ms(), num_bytes, charge))

    async def _save(self) -> None:
        """Under one of few names, so that saves replace one another."""
        run = self._random.choice(self._runs)
        path = str(CheckpointPath(run.model_id, CheckpointKind.TRAINING, self._random.choice("ab")))
        key, number = self._random.choice(KEYS), next(self._numbers)
        saving = OperationKind.SAVE_WEIGHTS
        seq_id = run.next_seq_id
        run.next_seq_id += 1
        sent = submission(
            saving, seq_id, owner_id=run.model_id, tenant_id=run.tenant_id, key_id=key
        )
        await self._store.operations.submit(sent)
        run.waiting.append((PlannedOperation(sent.request_id, saving, seq_id), key))
        saved = checkpoint(
            "",
            path=path,
            tenant_id=run.tenant_id,
            model_id=run.model_id,
            num_bytes=1000 * self._random.randrange(1, 100),
            created_at_ms=self._clock.now_ms(),
            request_id=sent.request_id,
            revision=str(number),
        )
        for _ in range(self._random.randrange(1, 3)):
            assert await self._store.checkpoints.put(saved)
        self._recorded(saved, self._charge(run.model_id, run.model_id, key))

    def _recorded(self, saved: Checkpoint, charge: Charge) -> None:
        if before := self._saved.get(saved.path):
            self._note_stored(saved.tenant_id, before[1], -before[0].num_bytes)
        self._saved[saved.path] = saved, charge
        self._note_stored(saved.tenant_id, charge, saved.num_bytes)
        self._count(saved.tenant_id, Meter.CHECKPOINT, charge, 1)

    async def _copy(self) -> None:
        if not self._saved:
            return
        source, _ = self._random.choice(list(self._saved.values()))
        run = self._random.choice(self._runs)
        session_id, number = ids.session_of(run.model_id), next(self._numbers)
        copied = ids.model_id(session_id, 1000 + number)
        key = self._random.choice(KEYS)
        project = self._random.choice([None, "copies"])
        copy = dataclasses.replace(
            source,
            path=str(CheckpointPath(copied, CheckpointKind.TRAINING, "copy")),
            tenant_id=run.tenant_id,
            model_id=copied,
            request_id="",
            expires_at_ms=None,
        )
        for number in range(self._random.randrange(1, 3)):
            is_new = await self._store.copies.record(copy, source.path, project, key)
            assert is_new == (number == 0)
        charge = self._charge(copied, copied, key)
        self._recorded(copy, dataclasses.replace(charge, project_id=project or charge.project_id))

    def _gone(self, path: str) -> None:
        saved, charge = self._saved.pop(path)
        self._note_stored(saved.tenant_id, charge, -saved.num_bytes)

    async def _delete(self) -> None:
        if self._saved:
            path = self._random.choice(list(self._saved))
            for _ in range(2):
                await self._store.checkpoints.delete(path, self._random.choice(KEYS))
            self._gone(path)

    async def _expire(self) -> None:
        if self._saved:
            path = self._random.choice(list(self._saved))
            await self._store.checkpoints.set_public(path, True)
            await self._store.checkpoints.set_expiry(path, self._clock.now_ms() + 60_000)
            self._clock.advance(61)
            assert await self._store.checkpoints.drop_expired() == 1
            self._gone(path)

    async def _move(self) -> None:
        session = self._random.choice(list(self._sessions.values()))
        project = self._random.choice(PROJECTS)
        await self._store.sessions.assign_project(session, project, "key-1")
        self._projects[session.session_id] = project

    async def _wait(self) -> None:
        self._clock.advance(self._random.randrange(1, 3 * 3600))

    def stored(self, from_hour: int) -> dict[tuple[str, int, Meter, Charge], int]:
        """Byte-seconds of each hour, from every change until now."""
        found: dict[tuple[str, int, Meter, Charge], int] = defaultdict(int)
        now_ms = self._clock.now_ms()
        for tenant_id, at_ms, num_bytes, charge in self._stored:
            for hour in range(from_hour, hour_of(now_ms) + 1):
                end_ms = min((hour + 1) * HOUR_MS, now_ms)
                lasted_ms = max(0, end_ms - max(at_ms, hour * HOUR_MS))
                found[tenant_id, hour, Meter.STORED, charge] += num_bytes * lasted_ms // 1000
        return {row: amount for row, amount in found.items() if amount}


@pytest.mark.parametrize("seed", range(10))
async def test_what_was_used_is_what_a_plain_count_says_by_every_partition(
    store: Store, clock: ManualClock, seed: int
) -> None:
    history = History(store, clock, seed)
    from_hour = hour_of(clock.now_ms())

    await history.play()

    before_hour, now_ms = hour_of(clock.now_ms()) + 1, clock.now_ms()
    rows: list[tuple[str, Metered]] = [
        (tenant_id, row)
        for tenant_id in TENANTS
        for row in await store.metering.usage(tenant_id, from_hour, before_hour, now_ms)
    ]
    found = {(tenant, row.hour, row.meter, row.charge): row.amount for tenant, row in rows}
    assert {row: n for row, n in found.items() if n} == {
        **history.counted,
        **history.stored(from_hour),
    }
    total = _totals(rows, [])
    for size in range(1, 4):
        for by in itertools.combinations([each for each in GroupBy if each != "meter"], size):
            assert _totals(rows, by) == total


def _totals(rows: list[tuple[str, Metered]], by: tuple[GroupBy, ...] | list[GroupBy]) -> list[int]:
    """Each column, added up over all groups."""
    sums = summed(rows, by, UsageFilter())
    return [sum(column) for column in zip(*(each.amounts.values() for each in sums), strict=True)]
