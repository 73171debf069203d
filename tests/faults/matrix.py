"""The cases of the kill matrix, how one is run, and the table of all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from faults.deployment import Deployment
from faults.points import Kind, Point, Victim
from faults.scenario import Record, Run, Stage
from faults.wire import Reaction, Trip

_CLAIMS = (Point.BEFORE_CLAIM, Point.AFTER_CLAIM)
_LOG_TAIL_CHARACTERS = 3000


class Verdict(StrEnum):
    """What became of a run."""

    SURVIVED = "survived"
    """Everything it left behind is equal to an undisturbed run's."""
    LOST = "lost"
    """An exception, or a result that did not come in time."""
    DOUBLED = "doubled"
    """More steps or metered tokens, or other numbers."""
    NOT_TRIPPED = "not tripped"
    """Nothing stood at the point, so nothing was killed: the case shows nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """Kill ``victim`` while the worker is at ``point`` with an operation of ``kind``."""

    victim: Victim
    point: Point
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.victim}-{self.point}-{self.kind}"


@dataclass(frozen=True, slots=True)
class Result:
    """How a case ended."""

    case: Case
    verdict: Verdict
    detail: str = ""
    recovery_s: float | None = None
    """From the kill to the next result; None when none came after it."""


CASES = [Case(victim, point, kind) for victim in Victim for point in Point for kind in Kind]


def stage_of(point: Point, kind: Kind) -> Stage:
    """Where in the run to arm, so that the next operation of the kind passes the point.

    A step that arrives while the pass in front of it runs joins that cycle and is never claimed;
    so where a claim is wanted, the operation has to be one that is sent by itself.
    """
    match kind:
        case Kind.OPTIM_STEP if point in _CLAIMS:
            return Stage.STEPPING
        case Kind.SAVE if point in _CLAIMS:
            return Stage.SAVING
        case Kind.LOAD:
            return Stage.LOADING
        case Kind.HAND_OVER:
            return Stage.HANDING_OVER
        case Kind.SAMPLE:
            return Stage.SAMPLING
        case _:
            return Stage.PIPELINED


def run_case(deployment: Deployment, case: Case, expected: Record) -> Result:
    """Play the scenario once with the case's kill in it."""

    def kill(_: int) -> None:
        deployment.kill(case.victim)

    outcome = play_armed(deployment, case.point, case.kind, kill)
    if isinstance(outcome.record, Exception):
        error = outcome.record
        detail = f"{type(error).__name__}: {error}\n{logs(deployment)}"
        return Result(case, Verdict.LOST, detail, outcome.recovery_s)
    if outcome.trip is None:
        return Result(case, Verdict.NOT_TRIPPED, logs(deployment))
    if differences := outcome.record.differences(expected):
        detail = "\n".join([*differences, logs(deployment)])
        return Result(case, Verdict.DOUBLED, detail, outcome.recovery_s)
    return Result(case, Verdict.SURVIVED, "", outcome.recovery_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run with an armed wire left behind, or why it ended early."""

    run: Run
    record: Record | Exception
    trip: Trip | None
    recovery_s: float | None


def play_armed(deployment: Deployment, point: Point, kind: Kind, react: Reaction) -> Outcome:
    """Play the scenario; ``react`` while a worker stands at the point."""
    deployment.wait_ready()
    run = Run(deployment)
    armed_at = stage_of(point, kind)

    def reached(stage: Stage) -> None:
        if stage is armed_at:
            deployment.wire.arm(point, kind, react)

    record: Record | Exception
    try:
        record = run.play(reached)
    except Exception as error:  # noqa: BLE001 - any failure is a finding, not the end of the matrix
        record = error
    trip = deployment.wire.disarm()
    later_s = [at_s - trip.at_s for at_s in run.finished_s if trip and at_s > trip.at_s]
    return Outcome(run, record, trip, min(later_s, default=None))


def logs(deployment: Deployment) -> str:
    """The end of every process's log, for the report of a case that failed."""
    return "\n".join(
        f"--- {name}\n{deployment.log(name)[-_LOG_TAIL_CHARACTERS:]}" for name in deployment.names
    )


def table(results: Sequence[Result]) -> str:
    """The matrix in markdown: one row per victim, and all of them together.

    Units:
        Seconds are from the kill to the next result that the client got.
    """
    header = "| killed | cases | survived | lost | doubled | not tripped | median s | slowest s |"
    rows = [header, "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for victim in Victim:
        rows.append(_row(victim, [r for r in results if r.case.victim is victim]))
    rows.append(_row("all", results))
    return "\n".join(rows)


def _row(name: str, results: Sequence[Result]) -> str:
    times_s = [r.recovery_s for r in results if r.recovery_s is not None]
    median, slowest = (f"{f(times_s):.2f}" if times_s else "-" for f in (statistics.median, max))
    verdicts = [r.verdict for r in results]
    counts = " | ".join(str(verdicts.count(verdict)) for verdict in Verdict)
    return f"| {name} | {len(results)} | {counts} | {median} | {slowest} |"
