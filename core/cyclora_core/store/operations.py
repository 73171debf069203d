"""Operations: submitted once, kept in their model's command log, settled once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cyclora_core import partials
from cyclora_core.errors import CycloraError, FencedOut, ServerError
from cyclora_core.ids import CheckpointPath, session_of
from cyclora_core.operations import OperationKind
from cyclora_core.partials import RECORD_BYTES, Partial
from cyclora_core.quotas import Excess, Quota, day_of, month_of
from cyclora_core.records import FutureState, OperationError, Submission, SubmitOutcome
from cyclora_core.store.connection import Connection
from cyclora_core.store.futures import FUTURE_TTL_MS, clone_of
from cyclora_core.store.metering import METERED_KEPT_S, hour_of
from cyclora_core.store.models import new_model_fields
from cyclora_core.store.traces import MAX_TRACED, TRACE_KEPT_S, trace_entry
from cyclora_core.types import Execution, PlannedOperation

# What replaying a model's log needs again; the bodies of all others go when they settle. A
# load_weights settles with its snapshot: the checkpoint it read may be gone when it is replayed.
_REPLAYED_KINDS = frozenset(
    {
        OperationKind.CREATE_MODEL,
        OperationKind.FORWARD_BACKWARD,
        OperationKind.OPTIM_STEP,
    }
)


MAX_SEQ_IDS_AHEAD = 10_000
"""How far ahead of a model's log a request may come; bounds what one gap can make us hold."""


_PARTIAL_TTL_MS = 10 * 60 * 1000
"""A sample without news for this long is shown again only from its next token on."""


class SettleOutcome(StrEnum):
    """What the store did with an outcome."""

    SETTLED = "settled"
    ALREADY = "already"
    """It was settled before; a lost answer was asked for again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: an encoded result, or an error in words the tenant may read."""

    result: bytes | None
    error: OperationError | None = None
    num_tokens: int = 0
    """Metered only when there is a result."""
    is_replayed: bool = True
    """Whether running the operation again is part of restoring its model's state."""
    has_snapshot: bool = False
    """Whether storage holds the model's state after this operation, written under its epoch."""


class Operations:
    """The write side of command logs and sample queues."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock

    async def submit(self, submission: Submission) -> SubmitOutcome:
        """Record an operation; sending the same one again changes nothing.

        Raises:
            OverBudget: the tenant's token budget of the day or month does not hold it.
            OverQuota: the tenant has as much queued as it may have.
            UserError: it would make a model that the tenant may not have.
        """
        sent = submission.sent or submission.body
        digest = hashlib.sha256(submission.kind.encode() + b"\0" + sent).hexdigest()
        if submission.kind is OperationKind.SAMPLE:
            return await self._submit_sample(submission, digest)
        return await self._submit_to_model(submission, digest)

    async def _submit_to_model(self, submission: Submission, digest: str) -> SubmitOutcome:
        keys, model_id = self._keys, submission.owner_id
        now_ms = self._clock.now_ms()
        new_model = submission.new_model
        fields = ""
        session_id = session_of(model_id)
        if new_model is not None:
            rows = new_model_fields(new_model, submission.tenant_id, submission.base_model, now_ms)
            fields = json.dumps({name: str(value) for name, value in rows.items()})
        reply = await self._connection.run(
            "submit",
            [
                keys.future(submission.request_id),
                keys.body(submission.request_id),
                keys.model(model_id),
                keys.log(model_id),
                keys.held(model_id),
                keys.ready_models(submission.base_model),
                keys.wake(),
                keys.models_of(submission.tenant_id),
                keys.models_of_session(session_id),
                keys.gaps(),
                keys.session(session_id),
                keys.live_sessions(),
                keys.quota_use(submission.tenant_id),
                keys.tenants(),
            ],
            [
                digest,
                submission.seq_id,
                self._entry(submission),
                submission.body,
                now_ms,
                model_id,
                fields,
                _future_fields(submission, now_ms),
                FUTURE_TTL_MS,
                keys.settled_channel(),
                submission.request_id,
                MAX_SEQ_IDS_AHEAD,
                session_id,
                submission.tenant_id,
                submission.num_tokens,
                0 if new_model is None else new_model.lora.lora_rank,
                day_of(now_ms),
                month_of(now_ms),
            ],
        )
        return _submit_outcome(reply, submission, now_ms)

    async def _submit_sample(self, submission: Submission, digest: str) -> SubmitOutcome:
        keys, session_id = self._keys, session_of(submission.owner_id)
        now_ms = self._clock.now_ms()
        reply = await self._connection.run(
            "submit_sample",
            [
                keys.future(submission.request_id),
                keys.body(submission.request_id),
                keys.sample_queue(submission.base_model, submission.tenant_id),
                keys.sample_tenants(submission.base_model),
                keys.wake(),
                keys.completions(submission.owner_id, clone_of(submission.seq_id)),
                keys.pending_samples(session_id),
                keys.live_sessions(),
                keys.quota_use(submission.tenant_id),
                keys.tenants(),
            ],
            [
                digest,
                self._entry(submission),
                submission.body,
                submission.tenant_id,
                _future_fields(submission, now_ms),
                FUTURE_TTL_MS,
                keys.settled_channel(),
                submission.request_id,
                session_id,
                now_ms,
                submission.num_tokens,
                submission.num_samples,
                day_of(now_ms),
                month_of(now_ms),
            ],
        )
        return _submit_outcome(reply, submission, now_ms)

    def _entry(self, submission: Submission) -> str:
        entry: dict[str, Any] = {
            "request_id": submission.request_id,
            "kind": submission.kind,
            "tenant_id": submission.tenant_id,
            "owner_id": submission.owner_id,
            "seq_id": submission.seq_id,
            "num_tokens": submission.num_tokens,
            "datum_tokens": list(submission.datum_tokens),
            "shared_tokens": list(submission.shared_tokens),
            "submitted_at_ms": self._clock.now_ms(),
            "is_refused": submission.error is not None,
        }
        if submission.weights_path is not None:
            entry["weights_path"] = submission.weights_path
        return json.dumps(entry)

    async def bodies(self, request_ids: Sequence[str]) -> list[bytes]:
        """Encoded bodies of operations that are not settled, or may be replayed.

        Raises:
            ServerError: one is missing, which trimming and expiry must never cause.
        """
        if not request_ids:
            return []
        rows = await self._redis.mget([self._keys.body(each) for each in request_ids])
        for request_id, row in zip(request_ids, rows, strict=True):
            if row is None:
                raise ServerError(f"the body of {request_id} is missing from the store")
        return rows

    async def logged(
        self, model_id: str, first_seq_id: int, last_seq_id: int | None = None
    ) -> list[PlannedOperation]:
        """Operations of a model's log that were not refused, in order, ends included."""
        last = "+" if last_seq_id is None else f"{last_seq_id}-1"
        rows = await self._redis.xrange(self._keys.log(model_id), f"{first_seq_id}-1", last)
        entries = (json.loads(fields[b"entry"]) for _, fields in rows)
        return [
            PlannedOperation(
                entry["request_id"],
                OperationKind(entry["kind"]),
                entry["seq_id"],
                submitted_at_ms=entry["submitted_at_ms"],
            )
            for entry in entries
            if not entry["is_refused"]
        ]

    async def replayable(
        self, model_id: str, first_seq_id: int, last_seq_id: int
    ) -> list[PlannedOperation]:
        """The settled operations that make up a model's state, in order."""
        if last_seq_id < first_seq_id:
            return []
        failed = {int(row) for row in await self._redis.smembers(self._keys.failed(model_id))}
        return [
            operation
            for operation in await self.logged(model_id, first_seq_id, last_seq_id)
            if operation.kind in _REPLAYED_KINDS and operation.seq_id not in failed
        ]

    async def settle(
        self,
        *,
        worker_id: str,
        epoch: int,
        tenant_id: str,
        base_model: str,
        model_id: str,
        operation: PlannedOperation,
        outcome: Outcome,
        ran: Execution | None = None,
    ) -> SettleOutcome:
        """Store the outcome of a model's next operation and advance the model past it.

        Without ``ran`` it is left out of its session's trace.

        Raises:
            FencedOut: the model was assigned to another worker meanwhile.
            ServerError: the operation is not the model's next one.
        """
        keys = self._keys
        error = outcome.error
        now_ms, session_id = self._clock.now_ms(), session_of(model_id)
        is_billed = operation.kind.is_pass
        reply = await self._connection.run(
            "settle",
            [
                keys.model(model_id),
                keys.log(model_id),
                keys.future(operation.request_id),
                keys.body(operation.request_id),
                keys.ready_models(base_model),
                keys.wake(),
                keys.failed(model_id),
                keys.usage(tenant_id),
                keys.metered(tenant_id, hour_of(now_ms)),
                keys.trace(session_id),
                keys.session(session_id),
                keys.quota_use(tenant_id),
            ],
            [
                worker_id,
                epoch,
                operation.seq_id,
                FutureState.FAILED if error else FutureState.DONE,
                outcome.result or b"",
                error.message if error else "",
                error.category if error else "",
                FUTURE_TTL_MS,
                int(operation.kind in _REPLAYED_KINDS and outcome.is_replayed),
                keys.settled_channel(),
                operation.request_id,
                model_id,
                f"{operation.kind}_tokens",
                outcome.num_tokens,
                _mark(operation, outcome),
                base_model if is_billed else "",
                METERED_KEPT_S * 1000,
                trace_entry(
                    operation.request_id, operation.kind, outcome.error is None, ran, now_ms
                ),
                MAX_TRACED,
                TRACE_KEPT_S * 1000,
                session_id,
                day_of(now_ms),
                month_of(now_ms),
            ],
        )
        return _settle_outcome(reply.decode(), operation.request_id)

    async def settle_sample(
        self,
        *,
        worker_id: str,
        tenant_id: str,
        base_model: str,
        sampling_session_id: str,
        seq_id: int,
        request_id: str,
        outcome: Outcome,
        num_prefilled_tokens: int = 0,
        num_cached_tokens: int = 0,
        ran: Execution | None = None,
    ) -> SettleOutcome:
        """Store the outcome of a sample; ``outcome.num_tokens`` are the sampled ones.

        The prompt's tokens are those that were prefilled and those that were found cached.
        Without ``ran`` it is left out of its session's trace.

        Raises:
            FencedOut: the sample was given to another worker meanwhile.
        """
        keys = self._keys
        error = outcome.error
        now_ms, session_id = self._clock.now_ms(), session_of(sampling_session_id)
        reply = await self._connection.run(
            "settle_sample",
            [
                keys.future(request_id),
                keys.body(request_id),
                keys.worker_samples(worker_id),
                keys.completions(sampling_session_id, clone_of(seq_id)),
                keys.usage(tenant_id),
                keys.pending_samples(session_id),
                keys.metered(tenant_id, hour_of(now_ms)),
                keys.trace(session_id),
                keys.partial(request_id),
                keys.session(session_id),
                keys.quota_use(tenant_id),
            ],
            [
                worker_id,
                FutureState.FAILED if error else FutureState.DONE,
                outcome.result or b"",
                error.message if error else "",
                error.category if error else "",
                FUTURE_TTL_MS,
                keys.settled_channel(),
                request_id,
                num_prefilled_tokens,
                outcome.num_tokens,
                base_model,
                session_id,
                METERED_KEPT_S * 1000,
                trace_entry(request_id, OperationKind.SAMPLE, outcome.error is None, ran, now_ms),
                MAX_TRACED,
                TRACE_KEPT_S * 1000,
                num_cached_tokens,
                day_of(now_ms),
                month_of(now_ms),
            ],
        )
        return _settle_outcome(reply.decode(), request_id)

    async def show_partials(self, worker_id: str, samples: Sequence[Partial]) -> None:
        """Show new tokens of streamed samples; of those that went to another worker, nothing."""
        if not samples:
            return
        keys, args = list[str](), list[str | int | bytes]()
        for each in samples:
            keys += [self._keys.future(each.request_id), self._keys.partial(each.request_id)]
            place = each.first * RECORD_BYTES
            args += [each.request_id, place, partials.encode(each.tokens)]
        channel = self._keys.settled_channel()
        await self._connection.run(
            "show_partials", keys, [worker_id, _PARTIAL_TTL_MS, channel, *args]
        )


def _mark(operation: PlannedOperation, outcome: Outcome) -> str:
    if operation.kind is OperationKind.UNLOAD_MODEL:
        return "end"
    return "snapshot" if outcome.has_snapshot else ""


def _future_fields(submission: Submission, now_ms: int) -> str:
    fields = {
        "tenant_id": submission.tenant_id,
        "owner_id": submission.owner_id,
        "seq_id": str(submission.seq_id),
        "kind": str(submission.kind),
        "state": str(FutureState.PENDING),
        "submitted_at_ms": str(now_ms),
    }
    if submission.kind is OperationKind.SAMPLE and submission.weights_path is not None:
        fields["run_id"] = CheckpointPath.parse(submission.weights_path).model_id
    if submission.num_prompt_tokens:
        fields["prompt_tokens"] = str(submission.num_prompt_tokens)
    if submission.key_id:
        fields["key_id"] = submission.key_id
    if submission.project_id is not None:
        fields["project_id"] = submission.project_id
    if submission.error is not None:
        fields["state"] = str(FutureState.FAILED)
        fields["error_message"] = submission.error.message
        fields["error_category"] = str(submission.error.category)
    return json.dumps(fields)


def _submit_outcome(reply: Any, submission: Submission, now_ms: int) -> SubmitOutcome:
    if isinstance(reply, list):
        raise _refusal(reply, submission, now_ms)
    return SubmitOutcome(reply.decode())


def _refusal(reply: list[bytes], submission: Submission, now_ms: int) -> CycloraError:
    model = submission.new_model
    asked = {
        Quota.MAX_CONCURRENT_SAMPLES: submission.num_samples,
        Quota.MAX_RANK: 0 if model is None else model.lora.lora_rank,
        Quota.MAX_ADAPTERS: 1,
    }
    quota = Quota(reply[1].decode())
    return Excess.of(reply, asked.get(quota, submission.num_tokens), now_ms).error()


def _settle_outcome(reply: str, request_id: str) -> SettleOutcome:
    if reply == "fenced":
        raise FencedOut(f"{request_id} belongs to another worker now")
    if reply == "out_of_order":
        raise ServerError(f"{request_id} was settled before an earlier operation of its model")
    return SettleOutcome(reply)
