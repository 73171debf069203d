"""One clock cycle: steps, packed passes, steps; each operation settled as it finishes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from cyclora_core.errors import FencedOut, UserError
from cyclora_core.operations import (
    Body,
    LoadWeightsBody,
    ModelResult,
    OperationKind,
    OptimStepResult,
    PassBody,
    Result,
)
from cyclora_core.records import Checkpoint
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.store.metering import Meter
from cyclora_core.store.operations import Outcome
from cyclora_core.types import (
    Cycle,
    EndedCycle,
    Execution,
    ModelRecord,
    PlannedModel,
    PlannedOperation,
)
from cyclora_workers.checkpoint_reads import read_checkpoint
from cyclora_workers.checkpoint_steps import CheckpointSteps
from cyclora_workers.engine import Engine, Pass, PassOutcome
from cyclora_workers.handover import HandOver
from cyclora_workers.metrics import WorkerMetrics, latency_s
from cyclora_workers.outcomes import as_outcome
from cyclora_workers.phases import Phase, Phases
from cyclora_workers.recovery import ModelKeeper
from cyclora_workers.replay import InThread, decode_body
from cyclora_workers.sample_desk import SampleDesk

_log = structlog.get_logger()


@dataclass(slots=True)
class _Run:
    """One model's operations in this cycle, with what is needed to settle them."""

    planned: PlannedModel
    record: ModelRecord
    cycle: Cycle
    before: list[PlannedOperation] = field(default_factory=list[PlannedOperation])
    passes: list[Pass] = field(default_factory=list[Pass])
    pass_operations: list[PlannedOperation] = field(default_factory=list[PlannedOperation])
    after: list[PlannedOperation] = field(default_factory=list[PlannedOperation])
    bodies: dict[str, Body] = field(default_factory=dict[str, Body])
    is_fenced: bool = False
    """Another worker holds the model now: nothing more of it is done here."""
    is_ended: bool = False
    """The model was unloaded: everything behind that fails."""
    settling: asyncio.Task[None] | None = None
    """The settlement that was begun last; it ends behind all earlier ones."""

    @property
    def is_complete(self) -> bool:
        """Whether every pass of the run ends in this cycle, so that steps may follow."""
        return all(each.is_last_part for each in self.passes)


class Executor:
    """Turns a cycle into calls of the engine and settles the outcomes."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        engine: Engine,
        keeper: ModelKeeper,
        samples: SampleDesk,
        in_thread: InThread,
        handover: HandOver,
        worker_id: str,
        metrics: WorkerMetrics,
    ) -> None:
        self._store = store
        self._storage = storage
        self._engine = engine
        self._keeper = keeper
        self._samples = samples
        self._in_thread = in_thread
        self._handover = handover
        self._worker_id = worker_id
        self._metrics = metrics
        self._phases = Phases()
        """Of the present cycle."""
        self._clock = store.clock
        self._checkpoints = CheckpointSteps(store, storage, engine, in_thread, handover)

    async def execute(self, cycle: Cycle) -> EndedCycle:
        """Run one cycle to its end; samples are only admitted and finish when they finish."""
        started_at_ms = self._clock.now_ms()
        phases = self._phases = Phases()
        with phases.of(Phase.ADMIT):
            await self._samples.admit(cycle)
        with phases.of(Phase.LOAD):
            await self._keeper.expect(cycle.models)
            held = [await self._hold(model, cycle) for model in cycle.models]
            runs = [run for run in held if run is not None]
            await asyncio.gather(*(self._prepare(run) for run in runs))
        for run in runs:
            await self._run_steps(run, run.before)
        with phases.of(Phase.LOAD):
            await self._keeper.look_ahead(cycle.base_model)
        with phases.of(Phase.PASSES):
            await self._run_passes([run for run in runs if not run.is_fenced])
        for run in runs:
            await self._run_steps(run, run.after)
        for run in runs:
            await self._settled(run)
        with phases.of(Phase.SNAPSHOTS):
            self._handover.write()
            for planned in cycle.let_go:
                await self._let_go(cycle.base_model, planned)
            await self._keeper.cycle_ended()
        num_tokens = sum(_num_tokens(each) for run in runs for each in run.passes)
        self._metrics.cycle_ended(phases, num_tokens)
        ended = EndedCycle(
            cycle.cycle_id,
            cycle.base_model,
            cycle.worker_id,
            sorted({each.tenant_id for each in (*cycle.models, *cycle.samples)}),
            num_models=len(cycle.models),
            num_operations=sum(len(r.before) + len(r.pass_operations) + len(r.after) for r in runs),
            num_samples=len(cycle.samples),
            num_tokens=num_tokens,
            dispatched_at_ms=cycle.dispatched_at_ms,
            started_at_ms=started_at_ms,
            ended_at_ms=self._clock.now_ms(),
        )
        _log.info(
            "cycle finished",
            cycle_id=cycle.cycle_id,
            worker_id=self._worker_id,
            base_model=cycle.base_model,
            num_tenants=len({m.tenant_id for m in cycle.models}),
            num_models=ended.num_models,
            num_operations=ended.num_operations,
            num_tokens=num_tokens,
            num_samples=ended.num_samples,
            num_let_go=len(cycle.let_go),
            duration_s=round(phases.total_s, 6),
            **{f"{phase}_s": round(spent_s, 6) for phase, spent_s in phases.seconds.items()},
        )
        return ended

    async def _let_go(self, base_model: str, planned: PlannedModel) -> None:
        """Bring a model to storage, so that any worker may go on with it."""
        model_id, note = planned.model_id, ""
        try:
            await self._keeper.put_away(model_id)
        except OSError as error:
            _log.warning("model not let go", model_id=model_id, reason=str(error))
            note = "storage did not take its state"
        placements = self._store.placements
        is_ours = await placements.let_go(
            base_model, model_id, self._worker_id, planned.epoch, note
        )
        _log.info("model let go", model_id=model_id, is_ours=is_ours, is_kept=bool(note))

    async def _hold(self, planned: PlannedModel, cycle: Cycle) -> _Run | None:
        record = await self._keeper.ensure(planned)
        return _Run(planned, record, cycle, is_ended=record.is_ended) if record else None

    async def _prepare(self, run: _Run) -> None:
        # What was settled before its answer was lost, or before a restart, is not run again.
        planned, applied_seq_id = run.planned, run.record.applied_seq_id
        left = [each for each in planned.operations if each.seq_id > applied_seq_id]
        await self._fetch_bodies(run, left)
        for operation in left:
            if operation.kind.is_pass:
                run.passes.append(_as_pass(run, operation))
                run.pass_operations.append(operation)
            elif run.passes:
                run.after.append(operation)
            else:
                run.before.append(operation)

    async def _fetch_bodies(self, run: _Run, operations: Sequence[PlannedOperation]) -> None:
        wanted = [each for each in operations if each.kind is not OperationKind.UNLOAD_MODEL]
        rows = await self._store.operations.bodies([each.request_id for each in wanted])
        for operation, data in zip(wanted, rows, strict=True):
            run.bodies[operation.request_id] = await self._in_thread(
                decode_body, operation.kind, data
            )

    async def _run_passes(self, runs: Sequence[_Run]) -> None:
        started_at_ms = self._clock.now_ms()
        passes = [each for run in runs for each in run.passes]
        outcomes: dict[str, PassOutcome] = {}
        if passes:
            steps = self._engine.run_passes(passes)
            while not outcomes:
                outcomes = await self._in_thread(next, steps)
                if not outcomes:
                    with self._phases.of(Phase.DECODE):
                        finished = await self._in_thread(self._engine.decode_between_microbatches)
                        await self._samples.settle(finished)
                        await self._samples.show()
        # Looked for before anything is settled: a client that awaits its forward_backward
        # sends the optim_step only afterwards, so what is there now was pipelined.
        await asyncio.gather(
            *(self._join_followers(run) for run in runs if run.is_complete and run.passes)
        )
        for run in runs:
            for operation, each in zip(run.pass_operations, run.passes, strict=True):
                outcome = outcomes[each.request_id]
                self._settle_pass(run, operation, each, outcome, started_at_ms)

    async def _join_followers(self, run: _Run) -> None:
        """Take in the steps that arrived behind this cycle's passes while these ran."""
        planned = [*run.pass_operations, *run.after]
        logged = await self._store.operations.logged(run.planned.model_id, planned[-1].seq_id + 1)
        followers: list[PlannedOperation] = []
        for operation in logged:
            if operation.kind.is_pass:
                break
            followers.append(operation)
        await self._fetch_bodies(run, followers)
        run.after += followers

    def _settle_pass(
        self,
        run: _Run,
        operation: PlannedOperation,
        one: Pass,
        outcome: PassOutcome,
        started_at_ms: int,
    ) -> None:
        if outcome is None:
            return
        if isinstance(outcome, Exception):
            self._begin_settling(run, operation, outcome, 0, started_at_ms)
            return
        metrics = {**outcome.metrics, "clock_cycle:unique": float(run.cycle.cycle_id)}
        result = dataclasses.replace(outcome, metrics=metrics)
        num_tokens = sum(len(datum.tokens) for datum in one.body.data)
        self._begin_settling(run, operation, result, num_tokens, started_at_ms)

    async def _run_steps(self, run: _Run, operations: Sequence[PlannedOperation]) -> None:
        for operation in operations:
            # What others see of the rest (checkpoints, the model's end) comes behind what was.
            is_seen_elsewhere = operation.kind is not OperationKind.OPTIM_STEP
            if is_seen_elsewhere:
                await self._settled(run)
            if run.is_fenced:
                return
            started_at_ms = self._clock.now_ms()
            outcome: Result | Exception
            try:
                with self._phases.of(_phase_of(operation.kind)):
                    outcome = await self._step(run, operation)
            except Exception as error:  # noqa: BLE001 - boundary: this operation alone fails
                outcome = error
            if is_seen_elsewhere:
                with self._phases.of(Phase.SETTLE):
                    await self._settle(run, operation, outcome, 0, started_at_ms)
            else:
                self._begin_settling(run, operation, outcome, 0, started_at_ms)
            if isinstance(outcome, Exception) and not isinstance(outcome, UserError):
                await self._settled(run)
                # It may have stopped half-way: go on from what was settled, not from memory.
                self._keeper.forget(run.planned.model_id)
                await self._keeper.ensure(run.planned)

    async def _step(self, run: _Run, operation: PlannedOperation) -> Result:
        model_id, kind = run.planned.model_id, operation.kind
        if run.is_ended:
            raise UserError(f"model {model_id!r} was unloaded; create a new one")
        if kind is OperationKind.UNLOAD_MODEL:
            # Its log goes with it, and samplers of its weights may stay.
            await self._handover.written(model_id)
            return ModelResult(model_id)
        body = run.bodies[operation.request_id]
        match kind:
            case OperationKind.CREATE_MODEL:
                lora = body.lora  # type: ignore[union-attr]
                optimizer_type = run.record.optimizer_type
                await self._in_thread(self._engine.create, model_id, lora, optimizer_type)
                return ModelResult(model_id)
            case OperationKind.LOAD_WEIGHTS:
                await self._load(run.record, body)  # type: ignore[arg-type]
                # The checkpoint may be replaced or deleted later; replaying must not depend on it.
                await self._keeper.write_ahead(model_id, operation.seq_id)
                return ModelResult(model_id, path=body.path)  # type: ignore[union-attr]
            case OperationKind.OPTIM_STEP:
                metrics = await self._in_thread(self._engine.optim_step, model_id, body)
                return OptimStepResult(metrics)
            case _:
                return await self._checkpoints.save(run.record, operation, body)  # type: ignore[arg-type]

    async def _load(self, model: ModelRecord, body: LoadWeightsBody) -> None:
        load = partial(
            self._engine.load, optimizer=body.optimizer, optimizer_type=model.optimizer_type
        )

        async def read(_checkpoint: Checkpoint, folder: Path) -> None:
            await self._in_thread(load, model.model_id, body.lora, folder)

        await read_checkpoint(self._store, self._storage, body.path, read)

    def _begin_settling(
        self,
        run: _Run,
        operation: PlannedOperation,
        outcome: Result | Exception,
        num_tokens: int,
        started_at_ms: int,
    ) -> None:
        """Settle behind what is being settled of this model, while the engine goes on.

        Of several models it happens side by side, so that they share the store's way to its disk.
        """
        earlier = run.settling

        async def settle() -> None:
            if earlier is not None:
                await earlier
            if not run.is_fenced:
                await self._settle(run, operation, outcome, num_tokens, started_at_ms)

        run.settling = asyncio.create_task(settle())

    async def _settled(self, run: _Run) -> None:
        """Wait until all that was begun to be settled of a model is, or is another worker's."""
        if run.settling is not None:
            with self._phases.of(Phase.SETTLE):
                await run.settling
            run.settling = None
        if run.is_fenced:
            # Only now: the engine may have been at work on it.
            self._keeper.forget(run.planned.model_id)

    async def _settle(
        self,
        run: _Run,
        operation: PlannedOperation,
        outcome: Result | Exception,
        num_tokens: int,
        started_at_ms: int,
    ) -> None:
        model_id = run.planned.model_id
        has_failed = isinstance(outcome, Exception)
        settled = _outcome_of(operation, outcome, num_tokens)
        if operation.kind is OperationKind.UNLOAD_MODEL and not has_failed:
            # Before it settles: nobody would come back to it if this worker died in between.
            await self._checkpoints.discard_ephemeral(run.record)
        try:
            reply = await self._store.operations.settle(
                worker_id=self._worker_id,
                epoch=run.planned.epoch,
                tenant_id=run.planned.tenant_id,
                base_model=run.record.base_model,
                model_id=model_id,
                operation=operation,
                outcome=settled,
                ran=Execution(run.cycle.cycle_id, run.cycle.dispatched_at_ms, started_at_ms),
            )
        except FencedOut:
            _log.warning("model moved to another worker", model_id=model_id)
            run.is_fenced = True
            return
        self._metrics.settled(
            operation.kind,
            run.planned.tenant_id,
            settled,
            reply,
            latency_s=latency_s(operation.submitted_at_ms, self._clock.now_ms()),
            metered={Meter.TRAINING: num_tokens} if operation.kind.is_pass else {},
        )
        is_pass = operation.kind is OperationKind.FORWARD_BACKWARD
        self._keeper.applied(model_id, operation.seq_id, num_tokens if is_pass else 0)
        if operation.kind is OperationKind.LOAD_WEIGHTS and not has_failed:
            await self._keeper.covered(model_id, operation.seq_id)
        elif operation.kind is OperationKind.UNLOAD_MODEL and not has_failed:
            run.is_ended = True
        if run.is_ended:
            await self._keeper.end(model_id, operation.seq_id)


def _outcome_of(
    operation: PlannedOperation, outcome: Result | Exception, num_tokens: int
) -> Outcome:
    settled = as_outcome(outcome, num_tokens, operation.request_id)
    if operation.kind is OperationKind.OPTIM_STEP and isinstance(outcome, UserError):
        # A refused step may have dropped a gradient that is not finite; replay must do so too.
        return dataclasses.replace(settled, is_replayed=True)
    if operation.kind is OperationKind.LOAD_WEIGHTS and settled.error is None:
        return dataclasses.replace(settled, has_snapshot=True)
    return settled


def _phase_of(kind: OperationKind) -> Phase:
    is_step = kind in (
        OperationKind.OPTIM_STEP,
        OperationKind.CREATE_MODEL,
        OperationKind.UNLOAD_MODEL,
    )
    return Phase.STEPS if is_step else Phase.SAVES


def _as_pass(run: _Run, operation: PlannedOperation) -> Pass:
    body = run.bodies[operation.request_id]
    if not isinstance(body, PassBody):
        raise TypeError(f"{operation.request_id} is a {operation.kind} without data")
    return Pass(
        operation.request_id,
        run.planned.model_id,
        body,
        operation.kind is OperationKind.FORWARD_BACKWARD,
        operation.datum_range,
    )


def _num_tokens(one: Pass) -> int:
    data = one.body.data[one.range.start : one.range.stop]
    return sum(len(datum.tokens) for datum in data)
