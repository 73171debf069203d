"""Names and records that the tests of the server share."""

from __future__ import annotations

import dataclasses
from typing import Any

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.peft import ModuleGroup, TargetModule
from cyclora_core.records import Checkpoint, Future, FutureState, OperationError
from cyclora_core.types import BaseModelInfo, ModelRecord

TENANT = "tenant-a"


STRANGER = "tenant-b"


KEY = "tml-key-of-a"


STRANGER_KEY = "tml-key-of-b"


ADMIN_KEY = "tml-key-of-admin"


BASE = BaseModelInfo(
    name="org/tiny",
    vocab_size=100,
    max_context_length=32,
    eos_token_ids=(0,),
    architecture="tiny",
    num_parameters=1000,
    max_lora_rank=64,
    tokenizer_path="/models/org/tiny",
    tokenizer_files=("tokenizer.json",),
)


MODULES = [
    TargetModule("model.layers.0.self_attn.q_proj", 4, 6, ModuleGroup.ATTN),
    TargetModule("model.layers.0.self_attn.v_proj", 4, 4, ModuleGroup.ATTN),
    TargetModule("model.layers.0.mlp.up_proj", 4, 8, ModuleGroup.MLP),
    TargetModule("lm_head", 4, 100, ModuleGroup.UNEMBED),
]


SESSION = "00000000-0000-4000-8000-000000000001"


MODEL = ids.model_id(SESSION, 0)


SAMPLER = ids.sampling_session_id(SESSION, 0)


def model_record(**changes: Any) -> ModelRecord:
    record = ModelRecord(
        model_id=MODEL,
        tenant_id=TENANT,
        session_id=SESSION,
        base_model=BASE.name,
        lora=LoraConfig(lora_rank=8),
        created_at_ms=1000,
        last_request_at_ms=2000,
        logged_seq_id=0,
        applied_seq_id=0,
        snapshot_seq_id=-1,
        snapshot_epoch=0,
        worker_id=None,
        epoch=0,
        user_metadata={},
    )
    return dataclasses.replace(record, **changes)


def checkpoint(
    name: str = "final", kind: CheckpointKind = CheckpointKind.TRAINING, **changes: Any
) -> Checkpoint:
    record = Checkpoint(
        path=str(CheckpointPath(MODEL, kind, name)),
        tenant_id=TENANT,
        model_id=MODEL,
        kind=kind,
        name=name,
        base_model=BASE.name,
        lora=LoraConfig(lora_rank=8),
        has_optimizer=kind is CheckpointKind.TRAINING,
        num_bytes=123,
        created_at_ms=1000,
    )
    return dataclasses.replace(record, **changes)


def pending(request_id: str, kind: OperationKind = OperationKind.OPTIM_STEP) -> Future:
    owner_id, _, seq_id = request_id.rpartition(":")
    return Future(request_id, TENANT, owner_id, int(seq_id), kind, FutureState.PENDING)


def user_error(message: str = "bad") -> OperationError:
    return OperationError(message, ErrorCategory.USER)


def manual_clock() -> ManualClock:
    return ManualClock(10_000)
