"""Submissions, sessions and workers as tests need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyrage

from cyclora_core import ids
from cyclora_core.errors import ErrorCategory
from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.records import NewModel, OperationError, Submission, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.types import BaseModelInfo
from cyclora_core.waiting import WorkerStats

BASE_MODEL = "test/base"
SESSION_ID = "11111111-2222-3333-4444-555555555555"
LEASE_S = 30.0


def model_id(number: int = 0) -> str:
    return ids.model_id(SESSION_ID, number)


def submission(
    kind: OperationKind,
    seq_id: int,
    *,
    owner_id: str | None = None,
    tenant_id: str = "tenant-a",
    body: bytes = b"body",
    datum_tokens: Sequence[int] = (),
    shared_tokens: Sequence[int] = (),
    is_refused: bool = False,
    num_tokens: int | None = None,
    key_id: str = "",
) -> Submission:
    owner = owner_id or model_id()
    return Submission(
        request_id=ids.request_id(owner, seq_id),
        kind=kind,
        tenant_id=tenant_id,
        owner_id=owner,
        seq_id=seq_id,
        base_model=BASE_MODEL,
        body=body,
        num_tokens=sum(datum_tokens) if num_tokens is None else num_tokens,
        datum_tokens=datum_tokens,
        shared_tokens=shared_tokens,
        error=OperationError("refused", ErrorCategory.USER) if is_refused else None,
        new_model=NewModel(SESSION_ID, LoraConfig(8)) if seq_id == 0 else None,
        key_id=key_id,
    )


def sample(seq_id: int, *, tenant_id: str = "tenant-a", num_tokens: int = 10) -> Submission:
    owner = ids.sampling_session_id(SESSION_ID, 0)
    return submission(
        OperationKind.SAMPLE,
        seq_id,
        owner_id=f"{owner}",
        tenant_id=tenant_id,
        num_tokens=num_tokens,
    )


async def submit(store: Store, *submissions: Submission) -> list[SubmitOutcome]:
    return [await store.operations.submit(each) for each in submissions]


async def add_worker(
    store: Store,
    worker_id: str = "worker-1",
    name: str = "worker",
    *,
    base_model: str = BASE_MODEL,
    free_sample_tokens: int = 1000,
    lease_s: float = LEASE_S,
) -> None:
    info = BaseModelInfo(base_model, 64, 128, [2], "Qwen3ForCausalLM", 1000, 64, "/a/b/c/d")
    stats = WorkerStats(free_sample_tokens=free_sample_tokens, max_sample_tokens=free_sample_tokens)
    await store.workers.register(worker_id, name, info, lease_s, stats)


_pyrage: Any = pyrage  # parts of it come without types


def age_identity() -> Any:
    """A new private key; its ``to_public()`` as text is a recipient."""
    return _pyrage.x25519.Identity.generate()


def age_decrypt(data: bytes, identity: Any) -> bytes:
    """What was encrypted to an identity.

    Raises:
        ValueError: it was not.
    """
    try:
        return _pyrage.decrypt(data, [identity])
    except _pyrage.DecryptError as error:
        raise ValueError(str(error)) from error
