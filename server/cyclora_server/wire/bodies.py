"""JSON requests as the SDK's versions send them.

``type`` may be missing, and the defaults are the SDK's own, because its versions up to 0.16 leave
out what the caller did not set. What a value may be is judged in ``cyclora_server.validate``, after
the seq_id is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from cyclora_server.wire.reading import Body, Metadata

MAX_SEQ_ID = 2**31 - 1
MAX_SAMPLE_SEQ_ID = 2**63 - 1

FinishedReason = Literal["success", "errored", "interrupted"]


def _refuse_nulls(value: Any, names: Iterable[str]) -> Any:
    if isinstance(value, dict):
        fields: dict[str, Any] = value
        for name in names:
            if name in fields and fields[name] is None:
                raise ValueError(
                    f"{name} is null, as NaN and infinity are sent; expected a finite number"
                )
    return value


class Numbered(Body):
    """The part of a model's request that must be readable for it to use up its seq_id."""

    model_id: str
    seq_id: int = Field(ge=1, le=MAX_SEQ_ID)


class NumberedSample(Body):
    """The part of a sample request that its future is made from."""

    sampling_session_id: str
    seq_id: int = Field(ge=0, le=MAX_SAMPLE_SEQ_ID)


class ClientConfig(Body):
    """``client/config`` and ``client/dynamic_config``."""

    sdk_version: str = ""


class CreateSession(Body):
    """``create_session``."""

    tags: list[Annotated[str, Field(max_length=256)]] = Field(
        default_factory=list[str], max_length=100
    )
    user_metadata: Metadata = Field(default_factory=dict[str, str])
    sdk_version: str = Field(default="", max_length=100)
    project_id: str | None = None
    display_name: str | None = Field(default=None, max_length=1000)


class SessionRef(Body):
    """``session_heartbeat``."""

    session_id: str


class FinishReason(Body):
    """Why a client says that it is done."""

    type: FinishedReason = "success"


class FinishSession(Body):
    """``sessions/{session_id}/finish``."""

    reason: FinishReason = FinishReason()
    detail: str | None = None


class AssignProject(Body):
    """``sessions/{session_id}/project``."""

    project_id: str


class SearchOwner(Body):
    """Whose sessions a search is about."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: list[str] = Field(default_factory=list[str], max_length=10)

    @model_validator(mode="after")
    def _check_owners(self) -> Self:
        if self.type == "user" and not self.owner_urns:
            raise ValueError("owner_urns is empty; name 1 to 10 owners")
        return self


class StatusQuery(Body):
    """One status that a search accepts."""

    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[FinishedReason] | None = Field(default=None, min_length=1)


class SearchCursor(Body):
    """Where the next page of a search starts."""

    last_created_at: AwareDatetime
    last_session_id: str


class SearchSessions(Body):
    """``sessions/search``."""

    session_id: str | None = None
    project_ids: list[str] | None = Field(default=None, max_length=1000)
    user_metadata: Metadata = Field(default_factory=dict[str, str])
    display_name: str | None = Field(default=None, min_length=1, max_length=1000)
    owner: SearchOwner = SearchOwner()
    statuses: list[StatusQuery] | None = Field(default=None, min_length=1, max_length=10)
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SearchCursor | None = None


class OptimizerConfig(Body, extra="allow"):
    """The optimizer's family, chosen when a model is made, with keys of its own."""

    type: str = "adamw"


class LoraSettings(Body):
    """The shape of a new adapter."""

    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModel(Body):
    """``create_model``."""

    session_id: str
    model_seq_id: int = Field(ge=0, le=MAX_SEQ_ID)
    base_model: str
    user_metadata: Metadata = Field(default_factory=dict[str, str])
    lora_config: LoraSettings = LoraSettings()
    optimizer_config: OptimizerConfig = OptimizerConfig()


class ModelRef(Body):
    """``get_info`` and ``unload_model``."""

    model_id: str
    seq_id: int | None = None


class _StepParams(Body):
    """Numbers of one optimizer step."""

    @model_validator(mode="before")
    @classmethod
    def _read_nulls(cls, value: Any) -> Any:
        """Refuse nulls: the SDK writes NaN and infinity so, and a default would hide them."""
        return _refuse_nulls(value, cls.model_fields)


class AdamParams(_StepParams):
    """One AdamW step."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class DimuonParams(_StepParams):
    """One Dimuon step."""

    learning_rate: float
    beta1: float = 0.9
    grad_clip_norm: float = 0.0


class OptimStep(Numbered):
    """``optim_step``."""

    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class TensorData(Body):
    """An array in JSON; with row pointers it is sparse."""

    data: list[Any] = Field(default_factory=list[Any])
    dtype: str
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class ModelInput(Body):
    """Chunks of tokens; which kind a chunk is may have to be told from its fields."""

    chunks: list[dict[str, Any]]


class DatumBody(Body):
    """One training example."""

    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]


class PassInput(Body):
    """The data of a pass."""

    data: list[DatumBody]
    loss_fn: str
    loss_fn_config: dict[str, Any] = Field(default_factory=dict[str, Any])


class SamplingParamsBody(Body):
    """How to draw tokens."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: Any = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _read_numbers(cls, value: Any) -> Any:
        """Runs before nulls are taken for absent ones."""
        return _refuse_nulls(value, ("temperature", "top_p"))


class SampleCount(Body):
    """How many sequences a sample asks for, also one that is refused for something else."""

    num_samples: int = 1


class Sample(NumberedSample, SampleCount):
    """``asample``."""

    prompt: ModelInput
    sampling_params: SamplingParamsBody = SamplingParamsBody()
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool = False


class CreateSamplingSession(Body):
    """``create_sampling_session``."""

    session_id: str
    sampling_session_seq_id: int = Field(ge=0, le=MAX_SEQ_ID)
    base_model: str | None = None
    model_path: str | None = None


class SamplingSessionRef(Body):
    """``join_sampling_session``."""

    sampling_session_id: str


class SaveWeights(Numbered):
    """``save_weights``."""

    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: Metadata = Field(default_factory=dict[str, str])


class CopyWeights(Body):
    """``copy_weights``: into a project, or into a slot of a session."""

    source_path: str
    destination_project_id: str | None = None
    session_id: str | None = None
    model_seq_id: int | None = Field(default=None, ge=0, le=MAX_SEQ_ID)
    ttl_seconds: int | None = None
    weights_access_token: Any = None


class SetTtl(Body):
    """``.../ttl``; here null does not mean absent."""

    ttl_seconds: int | None

    @model_validator(mode="before")
    @classmethod
    def _read_nulls(cls, value: Any) -> Any:
        return value


class SaveWeightsForSampler(SaveWeights):
    """``save_weights_for_sampler``: named, or ephemeral behind a new sampling session."""

    kind: str = "snapshot"
    sampling_session_seq_id: int | None = Field(default=None, ge=0, le=MAX_SEQ_ID)


class SaveWeightsExternal(Numbered):
    """``save_weights_external``: PEFT's files, perhaps encrypted with age."""

    path: str
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None


class LoadWeights(Body):
    """``load_weights``: into an existing model, or as the first request of a new one."""

    model_id: str | None = None
    session_id: str | None = None
    model_seq_id: int | None = Field(default=None, ge=0, le=MAX_SEQ_ID)
    path: str
    optimizer: bool = False
    optimizer_config: OptimizerConfig | None = None
    base_model: str | None = None
    user_metadata: Metadata = Field(default_factory=dict[str, str])
    weights_access_token: Any = None


class WeightsInfo(Body):
    """``weights_info``."""

    tinker_path: str


class CustomLossInput(Body):
    """One input of a custom loss."""

    name: str
    rank: int


class CustomLossNode(Body):
    """One node of a traced function; its arguments are judged with the whole graph."""

    op: str
    name: str
    target: str
    args: list[Any] = Field(default_factory=list[Any])
    kwargs: dict[str, Any] = Field(default_factory=dict[str, Any])


class CustomLossGraph(Body):
    """A traced function."""

    format: Literal[1] = 1
    nodes: list[CustomLossNode]


class CreateCustomLoss(Body):
    """``create_custom_loss``."""

    session_id: str
    custom_loss_seq_id: int = Field(ge=0, le=MAX_SEQ_ID)
    name: str = ""
    inputs: list[CustomLossInput]
    graph: CustomLossGraph


class CancelFuture(Body):
    """``cancel_future``."""

    request_id: str = Field(max_length=200)


class RetrieveFuture(Body):
    """``retrieve_future``."""

    request_id: str
    allow_metadata_only: bool = False


class FuturesTarget(Body):
    """Whose samples a session poller asks for."""

    type: str = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: int = Field(default=0, ge=0)


class RetrieveFutures(Body):
    """``retrieve_futures``."""

    target: FuturesTarget
    prev_cursor: int = Field(default=0, ge=0)
    timeout: float | None = None
    retrieved_request_ids: list[str] = Field(default_factory=list[str])
