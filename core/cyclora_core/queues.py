"""What waits, as administrators see it: how much of whom and since when, never its contents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cyclora_core.operations import OperationKind


class WaitingState(StrEnum):
    """Where an operation stands that has not settled."""

    QUEUED = "queued"
    RUNNING = "running"
    """A worker was given it: in a cycle that it executes, or as a sample that it decodes."""
    HELD = "held"
    """An earlier request of its model has not arrived."""


@dataclass(frozen=True, slots=True)
class WaitingOperation:
    """One operation that has not settled."""

    request_id: str
    kind: OperationKind
    tenant_id: str
    owner_id: str
    """The model_id, or the sampling_session_id of a sample."""
    seq_id: int
    base_model: str
    num_tokens: int
    submitted_at_ms: int
    state: WaitingState


@dataclass(frozen=True, slots=True)
class QueueLength:
    """All that has not settled of one tenant for one base model."""

    tenant_id: str
    base_model: str
    num_models: int
    num_operations: int
    num_samples: int
    num_tokens: int
    num_running: int
    """Of the operations and samples, those that a worker was given."""
    oldest_at_ms: int
    """When the one was sent that has waited longest."""


def lengths(operations: Iterable[WaitingOperation]) -> list[QueueLength]:
    """Most tokens first."""
    groups: dict[tuple[str, str], list[WaitingOperation]] = {}
    for each in operations:
        groups.setdefault((each.tenant_id, each.base_model), []).append(each)
    found = [_length(*group, members) for group, members in groups.items()]
    return sorted(found, key=lambda each: (-each.num_tokens, each.tenant_id, each.base_model))


def _length(tenant_id: str, base_model: str, members: list[WaitingOperation]) -> QueueLength:
    samples = [each for each in members if each.kind is OperationKind.SAMPLE]
    models = {each.owner_id for each in members if each.kind is not OperationKind.SAMPLE}
    return QueueLength(
        tenant_id,
        base_model,
        num_models=len(models),
        num_operations=len(members) - len(samples),
        num_samples=len(samples),
        num_tokens=sum(each.num_tokens for each in members),
        num_running=sum(each.state is WaitingState.RUNNING for each in members),
        oldest_at_ms=min(each.submitted_at_ms for each in members),
    )
