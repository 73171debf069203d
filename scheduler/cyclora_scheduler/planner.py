"""What runs in one clock cycle of one worker (pure: no I/O, no clock, no settings object).

A cycle holds, of each model, the longest head of its command log of the form::

    steps* passes* steps*

where passes are forward and forward_backward and steps everything else. The passes of all models
run packed together; steps before them run first, steps after them last. So a forward_backward and
the optim_step behind it share a cycle, and the next forward_backward waits for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cyclora_core.blocks import block_tokens, split_into_blocks
from cyclora_core.types import (
    DatumRange,
    PendingOperation,
    PlannedModel,
    PlannedOperation,
    PlannedSample,
)
from cyclora_core.waiting import Assignment, Waiting, WaitingModel, WaitingSample
from cyclora_scheduler.fairness import take_fairly, take_room
from cyclora_scheduler.memory_share import take_back
from cyclora_scheduler.placing import Moves


@dataclass(frozen=True, slots=True)
class Budget:
    """What one cycle may hold, in tokens."""

    max_pass_tokens: int
    free_sample_tokens: int
    """Room for new samples: prompt and the most they may generate."""
    max_sample_tokens: int = 0
    """Room for samples when none runs; the rows of one that needs more run as they fit."""
    used_sample_tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    """What each tenant's samples hold of it, or wait for."""

    @property
    def is_all_free(self) -> bool:
        """Whether no sample runs."""
        return self.free_sample_tokens >= self.max_sample_tokens


@dataclass(frozen=True, slots=True)
class Credits:
    """What tenants carry from cycle to cycle, for passes and for samples apart."""

    passes: Mapping[str, float]
    samples: Mapping[str, float]

    @property
    def tenant_ids(self) -> set[str]:
        return {*self.passes, *self.samples}


@dataclass(frozen=True, slots=True)
class Plan:
    """The planner's output for one cycle."""

    assignments: Sequence[Assignment]
    samples: Sequence[WaitingSample]
    credits: Credits
    num_tokens: int
    """Tokens through passes; samples not counted."""
    let_go: Sequence[PlannedModel] = ()
    """Models that the worker brings to storage and gives up."""

    @property
    def is_empty(self) -> bool:
        return not self.assignments and not self.samples and not self.let_go

    @property
    def planned_samples(self) -> list[PlannedSample]:
        return [
            PlannedSample(
                each.request_id, each.tenant_id, each.owner_id, each.seq_id, each.submitted_at_ms
            )
            for each in (sample.operation for sample in self.samples)
        ]


@dataclass(frozen=True, slots=True)
class _Unit:
    """One block of one pass: the smallest thing a cycle can take."""

    run: _Run
    operation: PendingOperation
    stop: int
    cost: int


@dataclass(slots=True, eq=False)
class _Run:
    """The head of one model's log that a cycle could hold."""

    model: WaitingModel
    before: Sequence[PendingOperation]
    passes: Sequence[PendingOperation]
    after: Sequence[PendingOperation]
    first_start: int
    """Data of the first pass that earlier cycles ran."""

    @property
    def goes_on(self) -> bool:
        """Whether passes wait behind it that no cycle could hold together with it."""
        num_held = len(self.before) + len(self.passes) + len(self.after)
        return num_held < len(self.model.operations)


def plan_cycle(
    waiting: Waiting,
    worker_id: str,
    alive_worker_ids: frozenset[str],
    budget: Budget,
    credits: Credits,
    weights: Mapping[str, float],
    moves: Moves | None = None,
) -> Plan:
    """Choose what a free worker does next.

    A model whose worker is alive stays with it; one without a living worker goes where ``moves``
    says, with the next epoch, and to this one without them. A sample whose weights only a living
    worker has waits for that one.
    """

    def is_here(model_id: str, holder: str | None) -> bool:
        if moves is not None and model_id in moves.stays_away:
            return False
        if holder in alive_worker_ids:
            return holder == worker_id
        return moves is None or moves.homes.get(model_id) == worker_id

    runs = [
        _head(model, worker_id)
        for model in waiting.models
        if is_here(model.model_id, model.worker_id)
    ]
    # Oldest work first within a tenant; the name breaks ties so that a plan is reproducible.
    runs.sort(key=lambda r: (r.model.operations[0].submitted_at_ms, r.model.model_id))
    units: dict[str, list[_Unit]] = {}
    for run in runs:
        units.setdefault(run.model.tenant_id, []).extend(_units(run))
    shares = take_fairly(
        {tenant: [unit.cost for unit in queue] for tenant, queue in units.items()},
        budget.max_pass_tokens,
        credits.passes,
        weights,
        goes_on={run.model.tenant_id for run in runs if run.goes_on},
    )
    taken = [u for tenant, queue in units.items() for u in queue[: shares.num_taken[tenant]]]
    stops = {unit.operation.request_id: unit.stop for unit in taken}
    assignments = [
        assignment for run in runs if (assignment := _assignment(run, stops, worker_id)) is not None
    ]
    if moves is not None:
        assignments = _with_loads(assignments, moves, worker_id)
    # Weights that are not in storage yet are with one worker; if that dies, any makes them again.
    here = [
        sample
        for sample in waiting.samples
        if sample.worker_id in (None, worker_id) or sample.worker_id not in alive_worker_ids
    ]
    samples, sample_credits = _take_samples(here, budget, credits, weights)
    return Plan(
        assignments,
        samples,
        Credits(shares.credits, sample_credits),
        sum(unit.cost for unit in taken),
        [
            PlannedModel(model.model_id, model.tenant_id, model.epoch, [])
            for model in (moves.let_go if moves is not None else ())
        ],
    )


def _with_loads(
    assignments: Sequence[Assignment], moves: Moves, worker_id: str
) -> list[Assignment]:
    """Also those models that come without an operation, and which wishes all of them fulfil."""
    found = [replace(each, wish=moves.wish_of(each.planned.model_id)) for each in assignments]
    planned = {each.planned.model_id for each in found}
    for each in moves.loads:
        model = each.model
        if model.model_id not in planned:
            epoch = model.epoch if model.worker_id == worker_id else model.epoch + 1
            empty = PlannedModel(model.model_id, model.tenant_id, epoch, [])
            found.append(Assignment(empty, model.worker_id, model.epoch, each.wish))
    return found


def _head(model: WaitingModel, worker_id: str) -> _Run:
    operations = model.operations
    first_pass = next((i for i, o in enumerate(operations) if o.kind.is_pass), len(operations))
    end_pass = next(
        (i for i, o in enumerate(operations) if i > first_pass and not o.kind.is_pass),
        len(operations),
    )
    end = next(
        (i for i, o in enumerate(operations) if i > end_pass and o.kind.is_pass), len(operations)
    )
    passes = operations[first_pass:end_pass]
    # The part of a pass that a dead worker ran died with it.
    has_part = bool(passes) and (
        model.worker_id == worker_id and passes[0].seq_id == model.partial_seq_id
    )
    first_start = model.partial_stop if has_part else 0
    return _Run(model, operations[:first_pass], passes, operations[end_pass:end], first_start)


def _units(run: _Run) -> Iterator[_Unit]:
    for index, operation in enumerate(run.passes):
        start = run.first_start if index == 0 else 0
        sizes, shared = operation.datum_tokens, operation.shared_tokens
        for block in split_into_blocks(sizes, shared_tokens=shared):
            if block.stop > start:
                yield _Unit(run, operation, block.stop, block_tokens(block, sizes, shared))


def _assignment(run: _Run, stops: Mapping[str, int], worker_id: str) -> Assignment | None:
    model = run.model
    planned = [_planned(operation) for operation in run.before]
    is_complete = True
    for index, operation in enumerate(run.passes):
        start = run.first_start if index == 0 else 0
        stop = stops.get(operation.request_id, 0)
        if stop > start:
            num_data = len(operation.datum_tokens)
            part = None if (start, stop) == (0, num_data) else DatumRange(start, stop)
            planned.append(_planned(operation, part))
        if stop < len(operation.datum_tokens):
            is_complete = False
            break
    if is_complete:
        planned += [_planned(operation) for operation in run.after]
    if not planned:
        return None
    epoch = model.epoch if model.worker_id == worker_id else model.epoch + 1
    return Assignment(
        PlannedModel(model.model_id, model.tenant_id, epoch, planned), model.worker_id, model.epoch
    )


def _planned(operation: PendingOperation, part: DatumRange | None = None) -> PlannedOperation:
    return PlannedOperation(
        operation.request_id, operation.kind, operation.seq_id, part, operation.submitted_at_ms
    )


def _take_samples(
    waiting: Sequence[WaitingSample],
    budget: Budget,
    credits: Credits,
    weights: Mapping[str, float],
) -> tuple[list[WaitingSample], Mapping[str, float]]:
    queues: dict[str, list[WaitingSample]] = {}
    for sample in waiting:
        queues.setdefault(sample.operation.tenant_id, []).append(sample)
    if not queues:
        # Whoever owes something goes on owing it while samples of others run.
        return [], {} if budget.is_all_free else credits.samples

    costs = {
        tenant: [sample.operation.num_tokens for sample in queue]
        for tenant, queue in queues.items()
    }
    free, total = budget.free_sample_tokens, budget.max_sample_tokens
    shares = take_room(costs, free, total, credits.samples, weights)
    num_taken, left = dict(shares.num_taken), dict(shares.credits)
    waiting_costs = {tenant: costs[tenant][num_taken[tenant] :] for tenant in costs}
    used = dict(budget.used_sample_tokens)
    for tenant, count in num_taken.items():
        used[tenant] = used.get(tenant, 0) + sum(costs[tenant][:count])
    for tenant, count in take_back(
        {tenant: units for tenant, units in waiting_costs.items() if units}, used, total, weights
    ).items():
        num_taken[tenant] += count
        left[tenant] = left.get(tenant, 0.0) - sum(waiting_costs[tenant][:count])
    chosen = [s for tenant, queue in queues.items() for s in queue[: num_taken[tenant]]]
    return chosen, {tenant: credit for tenant, credit in left.items() if credit}
