"""The real planner under simulated load: discrete events, no store, no worker, no sleeping."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cyclora_core.operations import OperationKind
from cyclora_core.types import PendingOperation
from cyclora_core.waiting import Waiting, WaitingModel, WaitingSample, WorkerState, WorkerStats
from cyclora_scheduler.loop import cycle_budget
from cyclora_scheduler.planner import Budget, Credits, plan_cycle
from cyclora_scheduler.settings import SchedulerSettings

PASS = OperationKind.FORWARD_BACKWARD
STEP = OperationKind.OPTIM_STEP

_CYCLE_S = 0.002
"""What a cycle takes beside its tokens."""


@dataclass(slots=True)
class Trainer:
    """The client of a model: so many steps always under way, each forward_backward + optim_step."""

    model_id: str
    datum_tokens: Sequence[int]
    num_pipelined: int = 1
    tenant_id: str = ""
    """That of the model's name if empty."""
    worker_id: str | None = None
    epoch: int = 0
    next_seq_id: int = 1
    partial: tuple[int, int] = (-1, 0)
    log: list[PendingOperation] = field(default_factory=list[PendingOperation])
    sent_s: dict[int, float] = field(default_factory=dict[int, float])
    step_s: list[float] = field(default_factory=list[float])
    """How long each step took, from when it was sent."""
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.tenant_id = self.tenant_id or self.model_id

    def submit(self, now_s: float) -> None:
        for kind in (PASS, STEP):
            sizes = tuple(self.datum_tokens) if kind is PASS else ()
            self.log.append(
                PendingOperation(
                    f"{self.model_id}:{self.next_seq_id}",
                    kind,
                    self.tenant_id,
                    self.model_id,
                    self.next_seq_id,
                    sum(sizes),
                    sizes,
                    submitted_at_ms=round(now_s * 1000),
                )
            )
            self.sent_s[self.next_seq_id] = now_s
            self.next_seq_id += 1

    def waiting(self) -> WaitingModel:
        return WaitingModel(
            self.model_id, self.tenant_id, self.worker_id, self.epoch, *self.partial, self.log[:4]
        )


class TrainingSimulation:
    """Workers of one base model that train at a given speed, and clients that never stop."""

    def __init__(
        self,
        trainers: Sequence[Trainer],
        tokens_per_s: Mapping[str, float],
        weights: Mapping[str, float] | None = None,
        settings: SchedulerSettings | None = None,
    ) -> None:
        self.trainers = {trainer.model_id: trainer for trainer in trainers}
        self.cycle_s: list[float] = []
        self._speeds = tokens_per_s
        self._weights = weights or {}
        self._settings = settings or SchedulerSettings()
        self._credits = {worker_id: Credits({}, {}) for worker_id in tokens_per_s}
        for trainer in trainers:
            for _ in range(trainer.num_pipelined):
                trainer.submit(0.0)

    def run(self, duration_s: float) -> None:
        """Each worker plans when it becomes free, in the order of time."""
        free = [(0.0, worker_id) for worker_id in sorted(self._speeds)]
        while free[0][0] < duration_s:
            now_s, worker_id = heapq.heappop(free)
            took_s = self._cycle(worker_id, now_s)
            heapq.heappush(free, (now_s + took_s, worker_id))

    def _cycle(self, worker_id: str, now_s: float) -> float:
        speed = self._speeds[worker_id]
        worker = WorkerState(worker_id, "base", True, True, WorkerStats(speed))
        mine = [
            each.waiting()
            for each in self.trainers.values()
            if each.log and each.worker_id in (None, worker_id)
        ]
        plan = plan_cycle(
            Waiting(mine, []),
            worker_id,
            frozenset(self._speeds),
            cycle_budget(worker, self._settings),
            self._credits[worker_id],
            self._weights,
        )
        self._credits[worker_id] = plan.credits
        took_s = _CYCLE_S + plan.num_tokens / speed
        self.cycle_s.append(took_s)
        for assignment in plan.assignments:
            trainer = self.trainers[assignment.planned.model_id]
            trainer.worker_id, trainer.epoch = worker_id, assignment.planned.epoch
            for operation in assignment.planned.operations:
                part, sizes = operation.datum_range, trainer.log[0].datum_tokens
                start = part.start if part else 0
                stop = part.stop if part else len(sizes)
                trainer.num_tokens += sum(sizes[start:stop])
                if stop < len(sizes):
                    trainer.partial = (operation.seq_id, stop)
                    continue
                trainer.partial = (-1, 0)
                assert trainer.log.pop(0).seq_id == operation.seq_id
                sent_s = trainer.sent_s.pop(operation.seq_id)
                if operation.kind is STEP:
                    trainer.step_s.append(now_s + took_s - sent_s)
                    trainer.submit(now_s + took_s)
        return took_s


@dataclass(slots=True)
class Sampling:
    """A tenant's samples: as many as it has always waiting, each of one size."""

    tenant_id: str
    num_prompt_tokens: int
    max_tokens: int
    num_waiting: int
    num_generated: int | None = None
    """How many tokens each really gets; None: ``max_tokens``."""
    num_tokens: int = 0
    num_taken: int = 0


class SamplingSimulation:
    """A worker whose memory for keys and values is what tenants share."""

    STEPS = 8
    BLOCK = 16

    def __init__(
        self,
        tenants: Sequence[Sampling],
        memory_tokens: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.tenants = {each.tenant_id: each for each in tenants}
        self._memory_tokens = memory_tokens
        self._weights = weights or {}
        self._credits = Credits({}, {})
        self._running: list[tuple[Sampling, list[int]]] = []
        self.num_running: dict[str, list[int]] = defaultdict(list)

    def run(self, num_turns: int) -> None:
        for _ in range(num_turns):
            self._admit()
            self._decode()

    def _held(self, tenant: Sampling, done: Sequence[int]) -> int:
        return tenant.num_prompt_tokens + done[0] + self.BLOCK

    def _admit(self) -> None:
        held = sum(self._held(*each) for each in self._running)
        budget = Budget(1, max(0, self._memory_tokens - held), self._memory_tokens)
        samples = [
            self._sample(tenant, tenant.num_taken + number)
            for tenant in self.tenants.values()
            for number in range(min(256, tenant.num_waiting))
        ]
        plan = plan_cycle(
            Waiting([], samples), "w", frozenset("w"), budget, self._credits, self._weights
        )
        if plan.samples:
            self._credits = plan.credits
        for sample in plan.samples:
            tenant = self.tenants[sample.operation.tenant_id]
            tenant.num_taken += 1
            self._running.append((tenant, [0]))

    def _sample(self, tenant: Sampling, number: int) -> WaitingSample:
        cost = tenant.num_prompt_tokens + tenant.max_tokens
        name = f"{tenant.tenant_id}:{number}"
        return WaitingSample(
            PendingOperation(name, OperationKind.SAMPLE, tenant.tenant_id, "s", number, cost), name
        )

    def _decode(self) -> None:
        left: list[tuple[Sampling, list[int]]] = []
        for tenant, done in self._running:
            length = tenant.max_tokens if tenant.num_generated is None else tenant.num_generated
            num_new = min(self.STEPS, length - done[0])
            done[0] += num_new
            tenant.num_tokens += num_new
            if done[0] < length:
                left.append((tenant, done))
        self._running = left
        for tenant_id in self.tenants:
            mine = sum(tenant.tenant_id == tenant_id for tenant, _ in left)
            self.num_running[tenant_id].append(mine)
