"""Operation kinds, and the body and result of each as typed records with a payload codec.

The server makes bodies out of the wire format once; from there to the worker and back nothing
else is spoken. All arrays are numpy; no torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np

from cyclora_core.custom_loss import CustomLoss
from cyclora_core.optimizers import OptimizerType
from cyclora_core.payload import Array, Payload
from cyclora_core.peft import LORA_ALPHA
from cyclora_core.ragged import get_ragged, put_ragged
from cyclora_core.samples import SampleBody, SampleResult


class OperationKind(StrEnum):
    """One unit of queued work; the values appear in logs, metrics and the command log."""

    CREATE_MODEL = "create_model"
    LOAD_WEIGHTS = "load_weights"
    FORWARD = "forward"
    FORWARD_BACKWARD = "forward_backward"
    OPTIM_STEP = "optim_step"
    SAVE_WEIGHTS = "save_weights"
    SAVE_WEIGHTS_FOR_SAMPLER = "save_weights_for_sampler"
    SAVE_WEIGHTS_EXTERNAL = "save_weights_external"
    UNLOAD_MODEL = "unload_model"
    SAMPLE = "sample"
    CREATE_CUSTOM_LOSS = "create_custom_loss"
    """Only ever a future that is done: storing the loss is all there is to it."""

    @property
    def is_pass(self) -> bool:
        """Runs data through the model; passes of one cycle share packed sequences."""
        return self in (OperationKind.FORWARD, OperationKind.FORWARD_BACKWARD)


class _Record:
    """Records of plain JSON values; subclasses with arrays override both methods."""

    def to_payload(self) -> Payload:
        return Payload(meta=dataclasses.asdict(self), arrays={})  # type: ignore[call-overload]

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        return cls(**payload.meta)


@dataclass(frozen=True, slots=True)
class LoraConfig(_Record):
    """Shape of an adapter; scaling = lora_alpha / lora_rank.

    ``lora_alpha`` is 32 for every adapter that is created here, as the Tinker service has it; one
    that was uploaded keeps its own.
    """

    lora_rank: int = 32
    seed: int = 0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True
    lora_alpha: float = LORA_ALPHA


@dataclass(frozen=True, slots=True)
class CreateModelBody(_Record):
    """A fresh adapter: A Kaiming-uniform from the seed, B zero."""

    base_model: str
    lora: LoraConfig

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        return cls(payload.meta["base_model"], LoraConfig(**payload.meta["lora"]))


@dataclass(frozen=True, slots=True)
class Datum:
    """One training example, already shifted by the client.

    Shapes:
        tokens: [N] int32. loss_fn_inputs: each [N], or [N, K] for top-K targets; int64 for
        target_tokens, else float32.
    """

    tokens: Array
    loss_fn_inputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class PassBody:
    """Body of ``forward`` and ``forward_backward``."""

    loss_fn: str
    loss_fn_config: Mapping[str, float]
    data: Sequence[Datum]
    loss_id: str | None = None
    """The uploaded loss that ``custom`` means."""
    custom_loss: CustomLoss | None = None
    """That loss itself, so that replaying needs nothing but this body."""

    def to_payload(self) -> Payload:
        arrays: dict[str, Array] = {}
        put_ragged(arrays, "tokens", [datum.tokens for datum in self.data])
        keys = sorted({key for datum in self.data for key in datum.loss_fn_inputs})
        for key in keys:
            # A datum that lacks the key is told apart from one with an empty array.
            owners = [i for i, datum in enumerate(self.data) if key in datum.loss_fn_inputs]
            arrays[f"in.{key}.owners"] = np.asarray(owners, np.int32)
            put_ragged(arrays, f"in.{key}", [self.data[i].loss_fn_inputs[key] for i in owners])
        meta: dict[str, Any] = {
            "loss_fn": self.loss_fn,
            "loss_fn_config": dict(self.loss_fn_config),
            "keys": keys,
        }
        if self.custom_loss is not None:
            meta |= {"loss_id": self.loss_id, "custom_loss": self.custom_loss.to_json()}
        return Payload(meta, arrays)

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        tokens = get_ragged(payload.arrays, "tokens")
        inputs: list[dict[str, Array]] = [{} for _ in tokens]
        for key in payload.meta["keys"]:
            values = get_ragged(payload.arrays, f"in.{key}")
            for owner, value in zip(payload.arrays[f"in.{key}.owners"], values, strict=True):
                inputs[int(owner)][key] = value
        data = [Datum(t, i) for t, i in zip(tokens, inputs, strict=True)]
        meta = payload.meta
        loss = meta.get("custom_loss")
        return cls(
            meta["loss_fn"],
            meta["loss_fn_config"],
            data,
            meta.get("loss_id"),
            CustomLoss.from_json(loss) if loss else None,
        )


@dataclass(frozen=True, slots=True)
class PassResult:
    """Logprobs per datum, each shaped like that datum's target_tokens, and the metrics.

    Every metric key has exactly one colon, or the SDK raises.
    """

    logprobs: Sequence[Array]
    metrics: Mapping[str, float]

    def to_payload(self) -> Payload:
        arrays: dict[str, Array] = {}
        put_ragged(arrays, "logprobs", self.logprobs)
        return Payload({"metrics": dict(self.metrics)}, arrays)

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        return cls(get_ragged(payload.arrays, "logprobs"), payload.meta["metrics"])


@dataclass(frozen=True, slots=True)
class OptimStepBody(_Record):
    """AdamW with decoupled weight decay; ``grad_clip_norm`` 0.0 means no clipping."""

    optimizer_type: ClassVar = OptimizerType.ADAMW

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class DimuonStepBody(_Record):
    """One step of Dimuon; ``grad_clip_norm`` 0.0 means no clipping."""

    optimizer_type: ClassVar = OptimizerType.DIMUON

    learning_rate: float
    beta1: float = 0.9
    grad_clip_norm: float = 0.0

    def to_payload(self) -> Payload:
        return Payload({_OPTIMIZER: self.optimizer_type, **dataclasses.asdict(self)}, {})

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        return cls(**{key: value for key, value in payload.meta.items() if key != _OPTIMIZER})


_OPTIMIZER = "optimizer_type"


class _AnyOptimStep:
    """Tells the bodies of ``optim_step`` apart: one that names no optimizer is AdamW's."""

    @staticmethod
    def from_payload(payload: Payload) -> OptimStepBody | DimuonStepBody:
        body_type = DimuonStepBody if _OPTIMIZER in payload.meta else OptimStepBody
        return body_type.from_payload(payload)


@dataclass(frozen=True, slots=True)
class OptimStepResult(_Record):
    """Metrics of one optimizer step; the SDK leaves their names free."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SaveWeightsBody(_Record):
    """Body of ``save_weights``, ``save_weights_for_sampler`` and ``save_weights_external``.

    ``path`` is the ``tinker://`` path of a named checkpoint. For an ephemeral sampler save
    ``sampling_session_id`` names the session to create, and ``path`` is our own unlisted one.
    """

    path: str
    sampling_session_id: str | None = None
    ttl_s: int | None = None
    overwrite: bool = False
    user_metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    age_recipients: Sequence[str] = field(default_factory=list[str])
    """Public keys to which every file of an external save is encrypted; none: not encrypted."""


@dataclass(frozen=True, slots=True)
class SaveWeightsResult(_Record):
    """Exactly one of ``path`` and ``sampling_session_id`` is set."""

    path: str | None = None
    sampling_session_id: str | None = None
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CustomLossResult(_Record):
    """Result of create_custom_loss: what forward_backward names the loss by."""

    loss_id: str


@dataclass(frozen=True, slots=True)
class LoadWeightsBody(_Record):
    """Replace a model's adapter weights, and its optimizer state when ``optimizer`` is true."""

    path: str
    optimizer: bool
    base_model: str
    lora: LoraConfig

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        meta = payload.meta
        lora = LoraConfig(**meta["lora"])
        return cls(meta["path"], meta["optimizer"], meta["base_model"], lora)


@dataclass(frozen=True, slots=True)
class ModelResult(_Record):
    """Result of create_model, load_weights and unload_model."""

    model_id: str
    path: str | None = None


Body = (
    CreateModelBody
    | LoadWeightsBody
    | PassBody
    | OptimStepBody
    | DimuonStepBody
    | SaveWeightsBody
    | SampleBody
)
Result = (
    ModelResult | PassResult | OptimStepResult | SaveWeightsResult | SampleResult | CustomLossResult
)

BODY_TYPES: Mapping[OperationKind, Any] = {
    OperationKind.CREATE_MODEL: CreateModelBody,
    OperationKind.LOAD_WEIGHTS: LoadWeightsBody,
    OperationKind.FORWARD: PassBody,
    OperationKind.FORWARD_BACKWARD: PassBody,
    OperationKind.OPTIM_STEP: _AnyOptimStep,
    OperationKind.SAVE_WEIGHTS: SaveWeightsBody,
    OperationKind.SAVE_WEIGHTS_FOR_SAMPLER: SaveWeightsBody,
    OperationKind.SAVE_WEIGHTS_EXTERNAL: SaveWeightsBody,
    OperationKind.SAMPLE: SampleBody,
}

RESULT_TYPES: Mapping[OperationKind, Any] = {
    OperationKind.CREATE_MODEL: ModelResult,
    OperationKind.LOAD_WEIGHTS: ModelResult,
    OperationKind.UNLOAD_MODEL: ModelResult,
    OperationKind.FORWARD: PassResult,
    OperationKind.FORWARD_BACKWARD: PassResult,
    OperationKind.OPTIM_STEP: OptimStepResult,
    OperationKind.SAVE_WEIGHTS: SaveWeightsResult,
    OperationKind.SAVE_WEIGHTS_FOR_SAMPLER: SaveWeightsResult,
    OperationKind.SAVE_WEIGHTS_EXTERNAL: SaveWeightsResult,
    OperationKind.SAMPLE: SampleResult,
    OperationKind.CREATE_CUSTOM_LOSS: CustomLossResult,
}
