"""Records that the processes exchange through the store, apart from bodies and results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.optimizers import OptimizerType

Dtype = Literal["auto", "float32", "bfloat16"]
"""Precision of a base model; auto leaves the choice to the worker."""

BaseWeights = Literal["as_loaded", "int8", "int4"]
"""How a worker keeps the linear layers of its base model's decoder layers."""


class QueueState(StrEnum):
    """What a waiting client is told."""

    ACTIVE = "active"
    PAUSED_CAPACITY = "paused_capacity"
    PAUSED_RATE_LIMIT = "paused_rate_limit"


@dataclass(frozen=True, slots=True)
class BaseModelInfo:
    """What a worker says about the base model it serves."""

    name: str
    vocab_size: int
    max_context_length: int
    eos_token_ids: Sequence[int]
    architecture: str
    num_parameters: int
    max_lora_rank: int
    tokenizer_path: str
    """Folder with the tokenizer on the worker's machine; clients elsewhere fetch the files."""
    tokenizer_files: Sequence[str] = ()
    """File names kept in storage under this base model, served to clients on other machines."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**value)


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One tenant's adapter as the store knows it."""

    model_id: str
    tenant_id: str
    session_id: str
    base_model: str
    lora: LoraConfig
    created_at_ms: int
    last_request_at_ms: int
    logged_seq_id: int
    """Last operation of the gap-free command log; -1 when there is none."""
    applied_seq_id: int
    """Last settled operation; -1 before create_model settled."""
    snapshot_seq_id: int
    """Last operation covered by the snapshot; -1 when there is none."""
    snapshot_epoch: int
    """Epoch under which that snapshot was written."""
    worker_id: str | None
    epoch: int
    """Fencing token: grows with each assignment to a worker."""
    user_metadata: dict[str, str]
    is_ended: bool = False
    """Whether it was unloaded: its state is gone, and nothing more can be done with it."""
    copied_from: str | None = None
    """The checkpoint that it holds a copy of, or ``upload:{digest}`` for an adapter that was
    uploaded, and nothing else; None for one that was trained."""
    project_id: str | None = None
    """Of a copy, which has no session whose project counts."""
    optimizer_type: OptimizerType = OptimizerType.ADAMW


@dataclass(frozen=True, slots=True)
class PendingOperation:
    """What the scheduler knows of an operation that waits: its size, never its contents."""

    request_id: str
    kind: OperationKind
    tenant_id: str
    owner_id: str
    """The model_id, or the sampling_session_id of a sample."""
    seq_id: int
    num_tokens: int
    """What it costs of a cycle: tokens through the model; 0 for anything but passes and samples."""
    datum_tokens: Sequence[int] = ()
    """Tokens of each datum of a pass, so that a large one can be spread over cycles."""
    shared_tokens: Sequence[int] = ()
    """How many of them each datum shares with the one before it; empty where that is not used."""
    submitted_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class DatumRange:
    """The part of a pass that one cycle runs: data[start:stop]."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PlannedOperation:
    """One operation, or for a large pass one part of it, in a cycle."""

    request_id: str
    kind: OperationKind
    seq_id: int
    datum_range: DatumRange | None = None
    """Only for passes that are spread over several cycles."""
    submitted_at_ms: int = field(default=0, compare=False)
    """For measuring; 0 when it is not known."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """The run of operations of one model in a cycle, in seq_id order."""

    model_id: str
    tenant_id: str
    epoch: int
    operations: Sequence[PlannedOperation]


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """A sample that a worker admits in this cycle; it may finish in a later one."""

    request_id: str
    tenant_id: str
    sampling_session_id: str
    seq_id: int
    submitted_at_ms: int = field(default=0, compare=False)
    """For measuring; 0 when it is not known."""


@dataclass(frozen=True, slots=True)
class Execution:
    """In which cycle an operation ran, and when; of a pass spread over several, in the last."""

    cycle_id: int
    dispatched_at_ms: int
    """By the scheduler's clock."""
    started_at_ms: int
    """By the worker's."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """One plan for one worker, numbered per base model."""

    cycle_id: int
    base_model: str
    worker_id: str
    models: Sequence[PlannedModel]
    samples: Sequence[PlannedSample]
    dispatched_at_ms: int = 0
    let_go: Sequence[PlannedModel] = ()
    """Models without operations whose states go to storage, and that any worker may have then."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        models = [_planned_model(model) for model in value["models"]]
        samples = [PlannedSample(**sample) for sample in value["samples"]]
        return cls(
            value["cycle_id"],
            value["base_model"],
            value["worker_id"],
            models,
            samples,
            value["dispatched_at_ms"],
            [_planned_model(model) for model in value.get("let_go", ())],
        )


@dataclass(frozen=True, slots=True)
class EndedCycle:
    """How much one cycle held, and when it ran."""

    cycle_id: int
    base_model: str
    worker_id: str
    tenants: Sequence[str]
    num_models: int
    num_operations: int
    num_samples: int
    """Those admitted in it; they may end in a later one."""
    num_tokens: int
    """Through passes."""
    dispatched_at_ms: int
    """By the scheduler's clock."""
    started_at_ms: int
    ended_at_ms: int


def _planned_model(value: dict[str, Any]) -> PlannedModel:
    operations = [_planned_operation(operation) for operation in value["operations"]]
    return PlannedModel(value["model_id"], value["tenant_id"], value["epoch"], operations)


def _planned_operation(value: dict[str, Any]) -> PlannedOperation:
    part = value["datum_range"]
    return PlannedOperation(
        value["request_id"],
        OperationKind(value["kind"]),
        value["seq_id"],
        DatumRange(**part) if part else None,
        value.get("submitted_at_ms", 0),
    )
