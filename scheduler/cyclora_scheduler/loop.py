"""The clock: gather what waits, plan one cycle per free worker, dispatch it."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from cyclora_core.clock import Clock
from cyclora_core.store import Store
from cyclora_core.types import Cycle
from cyclora_core.waiting import Waiting, WorkerState
from cyclora_scheduler.allowances import within_allowances
from cyclora_scheduler.metrics import SchedulerMetrics
from cyclora_scheduler.placing import Moves, plan_moves
from cyclora_scheduler.planner import Budget, Credits, Plan, plan_cycle
from cyclora_scheduler.settings import SchedulerSettings
from cyclora_scheduler.wake_ups import WakeUps
from cyclora_scheduler.weights import TenantWeights, tenants_of

_MAX_OPERATIONS_PER_MODEL = 256
_MAX_SAMPLES_PER_TENANT = 256
_GAP_CHECK_S = 1.0
_MAX_TICK_S = 5.0
"""Longer than one look at all workers takes when the store answers."""
_MEASURE_S = 1.0
"""A queue is measured at most this often: of a long one that costs a tenth of looking into it."""
_QUEUE_CHECK_S = 5.0
"""A queue that no free worker had looked into for so long is looked into to be measured."""
_LET_GO_AGAIN_S = 5.0
_LITTLE_WAIT, _MUCH_WAIT = 0.5, 0.1
"""Parts of a cycle for which its models are waited for, when little and when much else waits."""

_log = structlog.get_logger()


class Scheduler:
    """Decides what runs in each clock cycle; holds nothing that it could not lose."""

    def __init__(
        self,
        store: Store,
        settings: SchedulerSettings,
        clock: Clock,
        wait: Callable[[float], Awaitable[None]] | None = None,
        metrics: SchedulerMetrics | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics or SchedulerMetrics()
        self._measured_s: dict[str, float] = {}
        """When each base model's queue was last measured (mono)."""
        self._ticked_s = clock.mono_s()
        self._settings = settings
        self._clock = clock
        self._wake_ups = WakeUps(store.cycles.wait_for_work, settings.idle_wait_s)
        self._wait = wait or self._wake_ups.wait
        self._last: dict[str, LastCycle] = {}
        name = settings.scheduler_name
        self._token = f"{name}/{uuid.uuid4().hex}"
        self._replaces = f"{name}/" if name else ""
        """Only at the first look: of two living schedulers of one name the later one leads."""
        self._credits: dict[str, Credits] = {}
        """Of each worker: its cycles are what its tenants share. A scheduler that takes over counts
        anew, which costs or gives a tenant one cycle and what its largest operation takes."""
        self._weights = TenantWeights(store, clock)
        self._let_go_s: dict[str, dict[str, float]] = {}
        """Of each draining worker: when each of its models was last to be given up (mono)."""
        self._is_leading = False
        self._has_waited = False
        self._next_gap_check_s = 0.0
        self._next_queue_check_s = 0.0
        self._gaps: dict[str, tuple[int, float]] = {}
        """Of each model with a gap: the seq_id in front of it, and when we first saw it (mono)."""

    @property
    def is_moving(self) -> bool:
        """Whether the loop has come round lately; one that waits for the store has not."""
        longest_s = self._settings.idle_wait_s + self._settings.leader_lease_s
        return self._clock.mono_s() - self._ticked_s <= longest_s + _MAX_TICK_S

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until ``stopping`` is set; a cycle starts as soon as a worker and work are there."""
        cycles, wait_s = self._store.cycles, self._settings.idle_wait_s
        while not stopping.is_set():
            self._has_waited = False
            # What changes from here on wakes us: looking again behind a dispatch finds nothing,
            await self.tick()
            # unless that waited for company, and took what was to wake us for another worker.
            if self._has_waited:
                continue
            if self._is_leading:
                await self._wake_ups.wait(wait_s)
            else:
                await cycles.wait_for_vacancy(wait_s)
        await self._wake_ups.end()
        await self.resign()

    def credits(self, worker_id: str) -> Credits:
        """What tenants carry on from a worker's last cycle."""
        return self._credits.get(worker_id, Credits({}, {}))

    async def resign(self) -> None:
        """Leave the lead to whoever waits for it."""
        if await self._store.cycles.resign(self._token):
            self._is_leading = False
            _log.info("leadership given up")

    async def run_until_idle(self) -> int:
        """Dispatch until nothing more can be; returns the number of cycles (for tests)."""
        num_cycles = 0
        while num_dispatched := await self.tick():
            num_cycles += num_dispatched
        return num_cycles

    async def tick(self) -> int:
        """Look once at every worker; returns the number of cycles dispatched."""
        lease_s, replaces = self._settings.leader_lease_s, self._replaces
        leads = await self._store.cycles.lead(self._token, lease_s, replaces)
        self._replaces = ""
        if leads != self._is_leading:
            self._is_leading = leads
            # What was seen before leading was lost may have been closed and opened since.
            self._gaps.clear()
            _log.info("leadership changed", is_leading=leads)
        self._ticked_s = self._clock.mono_s()
        self._metrics.ticked(is_leading=leads)
        if not leads:
            return 0
        await self._close_gaps()
        workers = await self._store.cycles.workers()
        for worker in workers:
            if not worker.is_alive:
                await self._bury(worker)
        alive = [worker for worker in workers if worker.is_alive]
        self._metrics.saw_workers(alive)
        num_dispatched = 0
        for index, worker in enumerate(alive):
            if worker.is_free and await self._dispatch_to(worker, alive):
                num_dispatched += 1
                alive[index] = replace(worker, is_free=False)
        alive_ids = {worker.worker_id for worker in alive}
        self._last = {key: last for key, last in self._last.items() if key in alive_ids}
        self._credits = {key: each for key, each in self._credits.items() if key in alive_ids}
        draining = {worker.worker_id for worker in alive if worker.is_draining}
        self._let_go_s = {k: each for k, each in self._let_go_s.items() if k in draining}
        await self._measure_queues()
        return num_dispatched

    async def _measure_queues(self) -> None:
        """Measure the queues of base models that have no free worker, or none at all."""
        now_s = self._clock.mono_s()
        if now_s < self._next_queue_check_s:
            return
        self._next_queue_check_s = now_s + _QUEUE_CHECK_S
        for info in await self._store.base_models.list():
            if now_s - self._measured_s.get(info.name, now_s - _QUEUE_CHECK_S) >= _QUEUE_CHECK_S:
                await self._gather(info.name)

    async def _close_gaps(self) -> None:
        now_s = self._clock.mono_s()
        if now_s < self._next_gap_check_s:
            return
        self._next_gap_check_s = now_s + _GAP_CHECK_S
        cycles, timeout_s = self._store.cycles, self._settings.gap_timeout_s
        # Measured on our own monotonic clock: wall clocks jump, and those of other machines differ.
        seen = self._gaps
        self._gaps = {}
        for model_id, logged_seq_id in (await cycles.gaps()).items():
            known = seen.get(model_id)
            since_s = known[1] if known and known[0] == logged_seq_id else now_s
            is_over = now_s - since_s >= timeout_s
            if is_over and await cycles.close_gap(self._token, model_id, logged_seq_id, timeout_s):
                self._metrics.closed_gap()
                _log.warning("gap closed", model_id=model_id, waited_s=timeout_s)
            else:
                self._gaps[model_id] = (logged_seq_id, since_s)
        self._metrics.saw_gaps(self._gaps)

    async def _bury(self, worker: WorkerState) -> None:
        if await self._store.cycles.bury(self._token, worker.worker_id, worker.base_model):
            self._metrics.buried()
            _log.warning("worker declared dead", worker_id=worker.worker_id)

    async def _dispatch_to(self, worker: WorkerState, alive: Sequence[WorkerState]) -> int:
        last = self._last.get(worker.worker_id)
        if last is not None and last.ended_s is None:
            last.ended_s = self._clock.mono_s()
        budget = cycle_budget(worker, self._settings)
        waiting = await self._gather(worker.base_model)
        if worker.is_draining:
            return await self._empty(worker, alive, waiting)
        if waiting.is_empty:
            if budget.is_all_free:
                self._credits.pop(worker.worker_id, None)  # nobody was kept waiting
            return 0
        began_s = self._clock.mono_s()
        while (wait_s := self._company_s(waiting, last, budget, began_s)) > 0:
            self._has_waited = True
            await self._wait(wait_s)
            waiting = await self._gather(worker.base_model)
        started_s = self._clock.mono_s()
        alive_ids = frozenset(each.worker_id for each in alive)
        credits = self.credits(worker.worker_id)
        weights = await self._weights.of(tenants_of(waiting) | credits.tenant_ids)
        moves = plan_moves(waiting, worker, _of_base_model(alive, worker))
        await self._end_wishes(worker, moves)
        plan = plan_cycle(waiting, worker.worker_id, alive_ids, budget, credits, weights, moves)
        if plan.is_empty:
            return 0
        if not await self._dispatch(worker, plan, started_s):
            return 0
        self._metrics.dispatched(worker.base_model, plan, budget, self._clock.now_ms())
        self._metrics.timed(self._clock.mono_s() - started_s, started_s - began_s)
        return 1

    async def _empty(
        self, worker: WorkerState, alive: Sequence[WorkerState], waiting: Waiting
    ) -> int:
        """Have a draining worker give up its models; what it has begun ends there."""
        started_s = self._clock.mono_s()
        held = await self._store.placements.of_worker(worker.worker_id)
        tried = self._let_go_s.setdefault(worker.worker_id, {})
        # What storage does not take is tried again, but not all the time.
        due = [m for m in held if started_s - tried.get(m.model_id, -math.inf) >= _LET_GO_AGAIN_S]
        moves = plan_moves(waiting, worker, _of_base_model(alive, worker), due)
        await self._end_wishes(worker, moves)
        tried |= {model.model_id: started_s for model in moves.let_go}
        nothing = Waiting([], [])
        budget, credits = cycle_budget(worker, self._settings), self.credits(worker.worker_id)
        plan = plan_cycle(
            nothing, worker.worker_id, frozenset({worker.worker_id}), budget, credits, {}, moves
        )
        return 0 if plan.is_empty else int(await self._dispatch(worker, plan, started_s))

    async def _end_wishes(self, worker: WorkerState, moves: Moves) -> None:
        for each, note in moves.over:
            await self._store.placements.end_wish(
                worker.base_model, each.model.model_id, each.wish, note
            )

    def _company_s(
        self, waiting: Waiting, last: LastCycle | None, budget: Budget, began_s: float
    ) -> float:
        now_s, settings = self._clock.mono_s(), self._settings
        wait_s = coalesce_s(waiting, budget, self._clock.now_ms(), settings.coalesce_ms)
        # By a wall clock that is behind the server's, nothing has waited long enough for ages.
        wait_s = max(0.0, min(wait_s, settings.coalesce_ms / 1000 - (now_s - began_s)))
        if last is not None:
            wait_s = max(wait_s, last.return_s(waiting, budget, now_s, settings.company_ms))
        return wait_s

    async def _gather(self, base_model: str) -> Waiting:
        waiting = await self._store.cycles.gather(
            base_model, _MAX_OPERATIONS_PER_MODEL, _MAX_SAMPLES_PER_TENANT
        )
        now_s = self._clock.mono_s()
        if now_s - self._measured_s.get(base_model, now_s - _MEASURE_S) >= _MEASURE_S:
            self._measured_s[base_model] = now_s
            self._metrics.saw_queue(base_model, waiting, self._clock.now_ms())
        return within_allowances(waiting)

    async def _dispatch(self, worker: WorkerState, plan: Plan, started_s: float) -> bool:
        models = [assignment.planned for assignment in plan.assignments]
        cycle = Cycle(
            0,
            worker.base_model,
            worker.worker_id,
            models,
            plan.planned_samples,
            self._clock.now_ms(),
            plan.let_go,
        )
        outcome = await self._store.cycles.dispatch(
            self._token, cycle, plan.assignments, plan.samples
        )
        if not isinstance(outcome, int):
            self._metrics.not_dispatched(outcome)
            _log.info("cycle not dispatched", worker_id=worker.worker_id, reason=outcome)
            return False
        self._credits[worker.worker_id] = plan.credits
        self._last[worker.worker_id] = LastCycle(
            {model.model_id: model.tenant_id for model in models}, self._clock.mono_s()
        )
        tenants = {m.tenant_id for m in models} | {s.operation.tenant_id for s in plan.samples}
        _log.info(
            "cycle planned",
            cycle_id=outcome,
            base_model=worker.base_model,
            worker_id=worker.worker_id,
            num_tenants=len(tenants),
            num_models=len(models),
            num_operations=sum(len(model.operations) for model in models),
            num_tokens=plan.num_tokens,
            num_samples=len(plan.samples),
            num_let_go=len(plan.let_go),
            plan_s=round(self._clock.mono_s() - started_s, 6),
        )
        return True


def _of_base_model(workers: Sequence[WorkerState], like: WorkerState) -> list[WorkerState]:
    return [each for each in workers if each.base_model == like.base_model]


def cycle_budget(worker: WorkerState, settings: SchedulerSettings) -> Budget:
    """Tokens that keep a cycle near its target length at the speed the worker measured."""
    wanted = round(worker.stats.tokens_per_s * settings.target_cycle_s)
    tokens = min(max(wanted, settings.min_cycle_tokens), settings.max_cycle_tokens)
    stats = worker.stats
    return Budget(
        tokens, stats.free_sample_tokens, stats.max_sample_tokens, stats.used_sample_tokens
    )


def is_little(waiting: Waiting, budget: Budget) -> bool:
    """Whether less than half a cycle of passes waits, so that company would be welcome."""
    operations = [operation for model in waiting.models for operation in model.operations]
    return 2 * sum(operation.num_tokens for operation in operations) < budget.max_pass_tokens


def coalesce_s(waiting: Waiting, budget: Budget, now_ms: int, coalesce_ms: float) -> float:
    """Seconds to wait for company: none once anything has waited for the whole window."""
    if not is_little(waiting, budget):
        return 0.0
    submitted = [o.submitted_at_ms for model in waiting.models for o in model.operations]
    submitted += [sample.operation.submitted_at_ms for sample in waiting.samples]
    waited_ms = now_ms - min(submitted, default=0)
    return max(0.0, min(coalesce_ms, coalesce_ms - waited_ms)) / 1000


@dataclass(slots=True)
class LastCycle:
    """A worker's latest cycle, as a hint who will be back soon."""

    tenants: Mapping[str, str]
    """Of each of its models."""
    dispatched_s: float
    ended_s: float | None = None

    def return_s(self, waiting: Waiting, budget: Budget, now_s: float, company_ms: float) -> float:
        """Seconds to wait for the models of this cycle to come back with their next operations.

        Two clients that each await their results would else take turns for ever, one computing
        while the other waits. Once both were in a cycle they get their answers together, and go
        on together. The wait is bounded by half the length of the cycle they return from.

        When much waits, only tenants that have nothing else are waited for, up to a tenth of the
        cycle: who awaits each step would else miss every other cycle of those that send ahead.
        """
        away = self.tenants.keys() - {model.model_id for model in waiting.models}
        if self.ended_s is None or not (away and waiting.models):
            return 0.0
        longest_s = (self.ended_s - self.dispatched_s) * _LITTLE_WAIT
        if not is_little(waiting, budget):
            if {self.tenants[each] for each in away} <= {m.tenant_id for m in waiting.models}:
                return 0.0
            longest_s = (self.ended_s - self.dispatched_s) * _MUCH_WAIT
        return max(0.0, min(company_ms / 1000, longest_s) - (now_s - self.ended_s))
