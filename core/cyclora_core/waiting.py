"""What the scheduler looks at when it plans: work that waits, and the workers.

Plain values without I/O, so that planning can be tested and simulated without a store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cyclora_core.placement import Wish
from cyclora_core.types import PendingOperation, PlannedModel


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker measured, as input to planning."""

    tokens_per_s: float = 0.0
    """Trained tokens per second over recent cycles; 0 before the first."""
    free_sample_tokens: int = 0
    """Tokens of KV memory that new samples may still take."""
    max_sample_tokens: int = 0
    """Tokens of KV memory in all."""
    free_adapter_bytes: int = 0
    """Adapter memory that no state takes."""
    max_adapter_bytes: int = 0
    """Adapter memory in all; 0 from a worker that does not say."""
    is_draining: bool = False
    """Whether its process was told to stop: it finishes what it has and takes nothing new."""
    used_sample_tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    """Tokens of KV memory that each tenant's samples hold or wait for."""


@dataclass(frozen=True, slots=True)
class WaitingModel:
    """A model with unsettled operations, in seq_id order from its next one."""

    model_id: str
    tenant_id: str
    worker_id: str | None
    epoch: int
    partial_seq_id: int
    """The pass of which ``worker_id`` ran a first part; -1 when there is none."""
    partial_stop: int
    """Number of data that part covered."""
    operations: Sequence[PendingOperation]


@dataclass(frozen=True, slots=True)
class WaitingSample:
    """A sample in its tenant's queue, with the queue entry it is taken out by."""

    operation: PendingOperation
    entry: str
    worker_id: str | None = None
    """The worker that has its weights in memory and nobody in storage yet; None: any will do."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model that is assigned to a worker, or to none."""

    model_id: str
    tenant_id: str
    worker_id: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class WaitingWish:
    """A model that an administrator wants elsewhere."""

    model: HeldModel
    wish: Wish
    has_ended: bool = False
    """Whether the model has ended: nothing is to be done any more."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """All that waits for one base model."""

    models: Sequence[WaitingModel]
    samples: Sequence[WaitingSample]
    allowances: Mapping[str, float] = field(default_factory=dict[str, float])
    """Tokens that each tenant under a rate may start now, fewer than none when it started more;
    a tenant that is not here may start anything."""
    wishes: Sequence[WaitingWish] = ()

    @property
    def is_empty(self) -> bool:
        return not self.models and not self.samples and not self.wishes


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker as the scheduler sees it."""

    worker_id: str
    base_model: str
    is_alive: bool
    is_free: bool
    stats: WorkerStats
    is_draining: bool = False
    """Whether an administrator wants it to have nothing left: no models, no samples."""
    num_models: int = 0
    """Models that are assigned to it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A planned model and what must still be true of it when the cycle is dispatched."""

    planned: PlannedModel
    expected_worker_id: str | None
    expected_epoch: int
    wish: Wish | None = None
    """The administrator's wish that this fulfils."""
