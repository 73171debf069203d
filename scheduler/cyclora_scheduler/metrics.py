"""What the scheduler measures: what waits, what it planned and for whom, which workers it sees."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping, Sequence

from cyclora_core.metrics import COUNTS, LONG_S, TOKENS, Instruments
from cyclora_core.types import PendingOperation
from cyclora_core.waiting import Waiting, WorkerState
from cyclora_scheduler.planner import Budget, Plan

_STATES = ("free", "busy", "draining")
_FILL = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0)


class SchedulerMetrics:
    """The instruments of one scheduler; of several, only the one that leads tells what waits."""

    def __init__(self) -> None:
        self.instruments = made = Instruments("scheduler")
        self._is_leading = made.gauge("scheduler_is_leading", "1 for the scheduler that leads.")
        self._ticks = made.counter("scheduler_ticks", "Looks at all workers, as a standby too.")
        self._queued = made.gauge(
            "queued_operations",
            "Operations that have not settled, those that are running included, and samples that "
            "no worker has; of each model and tenant at most the next 256.",
            "base_model",
            "kind",
        )
        self._queued_tokens = made.gauge(
            "queued_tokens", "Tokens of the same.", "base_model", "kind"
        )
        self._queued_tenants = made.gauge(
            "queued_tenants", "Tenants of whom something has not settled.", "base_model"
        )
        self._oldest_s = made.gauge(
            "oldest_queued_seconds",
            "Age of the oldest of them; 0 when there is none.",
            "base_model",
        )
        self._seen_kinds: set[tuple[str, str]] = set()
        self._gaps = made.gauge(
            "models_with_gap", "Models that wait for a request that has not arrived."
        )
        self._gaps_closed = made.counter(
            "gaps_closed", "Gaps given up on, whose requests have failed."
        )
        self._workers = made.gauge("workers", "Living workers.", "base_model", "state")
        self._seen_models: set[str] = set()
        self._buried = made.counter("workers_declared_dead", "Workers whose lease ran out.")
        self._cycles = made.counter("cycles_dispatched", "Clock cycles handed out.", "base_model")
        self._refused = made.counter(
            "cycles_not_dispatched", "Plans that the store refused, by its reason.", "reason"
        )
        self._plan_s = made.histogram("plan_seconds", "Seconds from what waits to a dispatch.")
        self._company_s = made.histogram(
            "company_wait_seconds", "Seconds that a cycle waited for company."
        )
        self._cycle_tenants = made.histogram("cycle_tenants", "Tenants of a cycle.", bounds=COUNTS)
        self._cycle_models = made.histogram("cycle_models", "Models of a cycle.", bounds=COUNTS)
        self._cycle_operations = made.histogram(
            "cycle_operations", "Operations of a cycle, samples not counted.", bounds=COUNTS
        )
        self._cycle_samples = made.histogram("cycle_samples", "New samples.", bounds=COUNTS)
        self._cycle_tokens = made.histogram(
            "cycle_tokens", "Tokens through the passes of a cycle.", bounds=TOKENS
        )
        self._cycle_fill = made.histogram(
            "cycle_fill_ratio", "These over the cycle's budget, if it has passes.", bounds=_FILL
        )
        self._queue_s = made.histogram(
            "queued_seconds",
            "Seconds from an operation's submission to its first cycle.",
            "kind",
            bounds=LONG_S,
        )

    def ticked(self, *, is_leading: bool) -> None:
        """Note a look; who does not lead forgets what it knew of queues and workers."""
        self._ticks.inc()
        self._is_leading.set(is_leading)
        if not is_leading:
            for gauge in (
                self._queued,
                self._queued_tokens,
                self._queued_tenants,
                self._oldest_s,
                self._workers,
            ):
                gauge.clear()
            self._gaps.set(0)

    def saw_workers(self, alive: Sequence[WorkerState]) -> None:
        """Note all living workers."""
        found = Tally((worker.base_model, _state(worker)) for worker in alive)
        self._seen_models |= {worker.base_model for worker in alive}
        for base_model in self._seen_models:
            for state in _STATES:
                self._workers.labels(base_model, state).set(found[base_model, state])

    def saw_queue(self, base_model: str, waiting: Waiting, now_ms: int) -> None:
        """Note what waits for a base model."""
        operations = _operations(waiting)
        counts = Tally((base_model, str(each.kind)) for each in operations)
        tokens = Tally[tuple[str, str]]()
        for each in operations:
            tokens[base_model, str(each.kind)] += each.num_tokens
        self._seen_kinds |= counts.keys()
        for labels in self._seen_kinds:
            if labels[0] == base_model:
                self._queued.labels(*labels).set(counts[labels])
                self._queued_tokens.labels(*labels).set(tokens[labels])
        self._queued_tenants.labels(base_model).set(len({each.tenant_id for each in operations}))
        oldest_ms = min((each.submitted_at_ms for each in operations), default=now_ms)
        self._oldest_s.labels(base_model).set(max(0, now_ms - oldest_ms) / 1000)

    def saw_gaps(self, gaps: Mapping[str, object]) -> None:
        self._gaps.set(len(gaps))

    def closed_gap(self) -> None:
        self._gaps_closed.inc()

    def buried(self) -> None:
        """Note a worker declared dead."""
        self._buried.inc()

    def not_dispatched(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def dispatched(self, base_model: str, plan: Plan, budget: Budget, now_ms: int) -> None:
        """Note a cycle that a worker has got."""
        self._cycles.labels(base_model).inc()
        models = [assignment.planned for assignment in plan.assignments]
        operations = [each for model in models for each in model.operations]
        tenants = {model.tenant_id for model in models}
        tenants |= {sample.operation.tenant_id for sample in plan.samples}
        self._cycle_tenants.observe(len(tenants))
        self._cycle_models.observe(len(models))
        self._cycle_operations.observe(len(operations))
        self._cycle_samples.observe(len(plan.samples))
        self._cycle_tokens.observe(plan.num_tokens)
        if plan.num_tokens:
            self._cycle_fill.observe(plan.num_tokens / budget.max_pass_tokens)
        begun = [
            (each.kind, each.submitted_at_ms)
            for each in operations
            if each.datum_range is None or each.datum_range.start == 0
        ]
        begun += [(s.operation.kind, s.operation.submitted_at_ms) for s in plan.samples]
        for kind, submitted_at_ms in begun:
            self._queue_s.labels(kind).observe(max(0, now_ms - submitted_at_ms) / 1000)

    def timed(self, plan_s: float, company_s: float) -> None:
        """Note how long planning took, and how long it waited for company before."""
        self._plan_s.observe(plan_s)
        self._company_s.observe(company_s)


def _operations(waiting: Waiting) -> list[PendingOperation]:
    found = [operation for model in waiting.models for operation in model.operations]
    return found + [sample.operation for sample in waiting.samples]


def _state(worker: WorkerState) -> str:
    if worker.stats.is_draining:
        return "draining"
    return "free" if worker.is_free else "busy"
