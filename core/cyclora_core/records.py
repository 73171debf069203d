"""Records that live in the store longer than a cycle: sessions, futures, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cyclora_core.errors import ErrorCategory
from cyclora_core.ids import CheckpointKind
from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.optimizers import OptimizerType

FUTURE_KEPT_S = 24 * 3600
"""How long a final future can be fetched; the SDK polls within seconds unless it is away."""

FETCHED_KEPT_S = 3600
"""Seconds that a result can be fetched again after it was fetched: an answer may be lost, and the
client asks again within seconds. Kept as long as the others, results of training alone, which no
client ever acknowledges, would fill the store."""

ACKNOWLEDGED_KEPT_S = 10 * 60
"""How long after its client said that it holds the result."""


UPLOADED = "upload:"
"""Begins the source of a run that holds an adapter that was uploaded, not a copy."""


@dataclass(frozen=True, slots=True)
class Session:
    """One connected client process."""

    session_id: str
    tenant_id: str
    created_at_ms: int
    last_heartbeat_at_ms: int
    sdk_version: str = ""
    display_name: str | None = None
    project_id: str | None = None
    tags: Sequence[str] = ()
    user_metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    finished_reason: str | None = None
    """Why it ended: what its client said, or ``EXPIRED``; None while it lives."""
    finished_detail: str | None = None


DEFAULT_PROJECT = "default"
"""Of everything that was never put into another one."""

EXPIRED = "expired"
"""The reason of a session that ended because nothing was heard of its client any more."""


@dataclass(frozen=True, slots=True)
class SamplingSession:
    """A session's right to sample from one fixed set of weights."""

    sampling_session_id: str
    tenant_id: str
    session_id: str
    base_model: str
    weights_path: str | None
    """Storage path of the adapter weights (a ``tinker://`` path); None is the base model."""
    model_path: str | None
    """The path as the tenant may see it; None for the base model and for ephemeral saves."""
    created_at_ms: int
    is_shared: bool = False
    """Whether the weights are another tenant's, who published them and may take them back."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A named checkpoint in storage, or an unlisted one behind an ephemeral sampling session."""

    path: str
    tenant_id: str
    model_id: str
    kind: CheckpointKind
    name: str
    base_model: str
    lora: LoraConfig
    has_optimizer: bool
    num_bytes: int
    created_at_ms: int
    request_id: str = ""
    """The save that made it; running that one again changes nothing."""
    revision: str = "0"
    """Which files are meant: a save under a name that is taken writes others beside them."""
    is_listed: bool = True
    expires_at_ms: int | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    is_public: bool = False
    """Whether tenants other than its own may load it, sample from it and copy it."""
    optimizer_type: OptimizerType = OptimizerType.ADAMW
    """That of the model it was saved from."""

    def has_expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and self.expires_at_ms <= now_ms


class FutureState(StrEnum):
    """A future is final once it is not pending."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class OperationError:
    """How an operation failed, in words the tenant may read."""

    message: str
    category: ErrorCategory


@dataclass(frozen=True, slots=True)
class Future:
    """The promise behind a request_id."""

    request_id: str
    tenant_id: str
    owner_id: str
    seq_id: int
    kind: OperationKind
    state: FutureState
    result: bytes | None = None
    """Encoded result payload once ``done``."""
    error: OperationError | None = None
    """Set once ``failed``."""


@dataclass(frozen=True, slots=True)
class NewModel:
    """What submitting seq_id 0 of a model records about it, in the same atomic step."""

    session_id: str
    lora: LoraConfig
    user_metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    optimizer_type: OptimizerType = OptimizerType.ADAMW


@dataclass(frozen=True, slots=True)
class Submission:
    """One operation on its way into the store.

    ``error`` set means that the body was refused: the operation becomes a failed future at once
    and still uses up its seq_id, since the SDK numbers its next request as if it had run.
    """

    request_id: str
    kind: OperationKind
    tenant_id: str
    owner_id: str
    seq_id: int
    base_model: str
    body: bytes
    num_tokens: int = 0
    datum_tokens: Sequence[int] = ()
    shared_tokens: Sequence[int] = ()
    error: OperationError | None = None
    new_model: NewModel | None = None
    sent: bytes = b""
    """The request as its client sent it, by which a retry is recognised; empty: the body itself.

    What we make of a request may depend on what else exists at the time, such as the checkpoint it
    names; a retry must find its future whatever has happened since.
    """
    num_samples: int = 0
    """Sequences that a sample draws; 0 of any other operation."""
    num_prompt_tokens: int = 0
    """Of ``num_tokens`` those that a sample does not draw."""
    weights_path: str | None = None
    """The checkpoint that a sample uses, by which it goes to the worker that has it in memory."""
    key_id: str = ""
    """The API key that sent it, to which its tokens are charged; "" where nobody did."""
    project_id: str | None = None
    """That of the key, for requests that belong to no session."""


class SubmitOutcome(StrEnum):
    """What the store did with a submission."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The same request was here before; its future stands."""
    CONFLICT = "conflict"
    """The seq_id was used before with another body."""
    EXPIRED = "expired"
    """The seq_id was used before, or counted as lost, and no future is kept of it."""
    TOO_FAR = "too_far"
    """The seq_id is further ahead of the model's log than any client sends."""
    ENDED = "ended"
    """It would make a model in a session that ended meanwhile."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished future of a sampling session, as the session poller reports it."""

    cursor: int
    request_id: str
    state: FutureState


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What administrators see of one worker."""

    worker_id: str
    base_model: str
    registered_at_ms: int
    is_alive: bool
    cycle_id: int | None
    """The cycle it executes; None when it is free."""
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_draining: bool = False
    """Whether it gets no new models and samples, and loses those it has."""
    num_models: int = 0
    """Models that are assigned to it."""
    num_samples: int = 0
    """Samples that it has and that have not ended."""

    @property
    def is_drained(self) -> bool:
        """Whether its process may be stopped without anything being lost or made again."""
        has_none = self.cycle_id is None and not self.num_models and not self.num_samples
        return self.is_draining and has_none
