"""From a checked body to a promise: how every operation enters the store.

A body that is refused still becomes a future, failed at once. The SDK has counted its seq_id
already and numbers its next request after it; answered with a 4xx, that number would stay a hole
that all later requests of the model wait behind for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cyclora_core import ids, payload
from cyclora_core.errors import Gone, Overloaded, OverQuota, UserError
from cyclora_core.logs import name_in_log
from cyclora_core.operations import Body, OperationKind
from cyclora_core.records import (
    ACKNOWLEDGED_KEPT_S,
    FETCHED_KEPT_S,
    FUTURE_KEPT_S,
    NewModel,
    OperationError,
    Submission,
    SubmitOutcome,
)
from cyclora_core.samples import SampleBody
from cyclora_core.types import BaseModelInfo, ModelRecord
from cyclora_server import access
from cyclora_server.auth import Identity
from cyclora_server.services import Json, Services

_MAX_UNLOAD_TRIES = 8
HOW_LONG_KEPT = (
    f"results are kept for {FUTURE_KEPT_S // 3600} hours after they became final, for "
    f"{FETCHED_KEPT_S // 60} minutes after they were fetched, and for "
    f"{ACKNOWLEDGED_KEPT_S // 60} minutes after their client said that it has them"
)

_MAKES_ROOM = frozenset({OperationKind.UNLOAD_MODEL})


@dataclass(frozen=True, slots=True)
class Draft:
    """What of a submission comes out of the request's body."""

    body: bytes
    num_tokens: int = 0
    datum_tokens: Sequence[int] = ()
    weights_path: str | None = None
    shared_tokens: Sequence[int] = ()
    num_samples: int = 0
    num_prompt_tokens: int = 0

    @classmethod
    def of(
        cls,
        body: Body,
        num_tokens: int = 0,
        datum_tokens: Sequence[int] = (),
        shared_tokens: Sequence[int] = (),
    ) -> Draft:
        encoded = payload.encode(body.to_payload())
        if isinstance(body, SampleBody):
            return cls(
                encoded,
                num_tokens,
                weights_path=body.weights_path,
                num_samples=body.num_samples,
                num_prompt_tokens=body.prompt_tokens.size,
            )
        return cls(encoded, num_tokens, datum_tokens, shared_tokens=shared_tokens)


@dataclass(frozen=True, slots=True)
class Target:
    """Which numbered request of whom a submission is."""

    tenant_id: str
    owner_id: str
    seq_id: int
    kind: OperationKind
    base_model: str
    sent: bytes
    """The request's body as it came, by which a retry is recognised."""
    key_id: str = ""
    """The API key that sent it, to which it is charged; "" where nobody did."""
    project_id: str | None = None
    """That of the key, for a request that belongs to no session."""

    @property
    def request_id(self) -> str:
        return ids.request_id(self.owner_id, self.seq_id)

    def submission(
        self, draft: Draft, error: OperationError | None = None, new_model: NewModel | None = None
    ) -> Submission:
        return Submission(
            request_id=self.request_id,
            kind=self.kind,
            tenant_id=self.tenant_id,
            owner_id=self.owner_id,
            seq_id=self.seq_id,
            base_model=self.base_model,
            body=draft.body,
            num_tokens=draft.num_tokens,
            datum_tokens=draft.datum_tokens,
            shared_tokens=draft.shared_tokens,
            error=error,
            new_model=new_model,
            sent=self.sent,
            num_samples=draft.num_samples,
            num_prompt_tokens=draft.num_prompt_tokens,
            weights_path=draft.weights_path,
            key_id=self.key_id,
            project_id=self.project_id,
        )


async def submit_for_model(
    services: Services,
    identity: Identity,
    *,
    model_id: str,
    seq_id: int,
    kind: OperationKind,
    sent: bytes,
    draft: Callable[[ModelRecord, BaseModelInfo], Awaitable[Draft]],
) -> Json:
    """Submit a numbered request of an existing model.

    Raises:
        NotFound: the model does not exist, or is another tenant's.
        Gone: the model has ended, and this request was not sent before that.
    """
    model = await access.owned_model(services, identity, model_id)
    if model.is_ended and await is_first_try(services, ids.request_id(model_id, seq_id)):
        raise Gone(
            f"model {model_id!r} was unloaded, or its session was finished; create a new one, from "
            "a checkpoint if there is one"
        )
    base = await access.base_model_of(services, model.base_model)
    target = Target(
        identity.tenant_id, model_id, seq_id, kind, model.base_model, sent, identity.key.key_id
    )
    return await submit_draft(services, target, lambda: draft(model, base))


async def submit_draft(
    services: Services, target: Target, draft: Callable[[], Awaitable[Draft]]
) -> Json:
    """Submit what ``draft`` makes of the body, or the reason why it refused to.

    Raises:
        Overloaded: there is no room for new work.
    """
    await _check_room(services, target)
    try:
        submission = target.submission(await draft())
    except UserError as error:
        failed = OperationError(str(error), error.category)
        submission = target.submission(Draft(b""), failed)
    return await submit(services, submission)


async def submit(services: Services, submission: Submission) -> Json:
    """Hand an operation to the store and return its promise.

    Raises:
        Overloaded: there is no room for new work, or the tenant has too much queued.
        OverBudget: the tenant's tokens of the day or month are used up.
        UserError: the seq_id was used before with another body, or a quota allows no such model.
        Gone: the seq_id was used before and its future is no longer kept, or the session that
            the model would belong to has ended.
    """
    name_in_log(request_id=submission.request_id)
    started_mono_s = services.clock.mono_s()
    outcome = await _store(services, submission)
    took_s = services.clock.mono_s() - started_mono_s
    services.metrics.submitted(submission, outcome, took_s)
    used = f"seq_id {submission.seq_id} of {submission.owner_id} was used before"
    if outcome is SubmitOutcome.CONFLICT:
        raise UserError(
            f"{used} by a request with another body; a retry must send the same one, a new "
            "request the next seq_id"
        )
    if outcome is SubmitOutcome.TOO_FAR:
        raise UserError(
            f"seq_id {submission.seq_id} of {submission.owner_id} is too far ahead of the requests "
            "that have arrived; number requests one by one"
        )
    if outcome is SubmitOutcome.ENDED:
        raise Gone(f"session {ids.session_of(submission.owner_id)} has ended; open a new one")
    if outcome is SubmitOutcome.EXPIRED:
        raise Gone(
            f"{used}, or others gave up waiting for it, and no result of it is kept; it does not "
            f"run again; {HOW_LONG_KEPT}"
        )
    return promise(submission.request_id)


async def _store(services: Services, submission: Submission) -> SubmitOutcome:
    operations = services.store.operations
    if submission.kind in _MAKES_ROOM:
        return await operations.submit(submission)
    try:
        with services.capacity.admitted(len(submission.body)):
            return await operations.submit(submission)
    except OverQuota:
        raise
    except Overloaded:
        if not await services.store.gaps.is_awaited(submission.owner_id, submission.seq_id):
            raise
    with services.capacity.admitted(len(submission.body), is_awaited=True):
        return await operations.submit(submission)


async def _check_room(services: Services, target: Target) -> None:
    """Refuse before the body is decoded; its size counts later."""
    if target.kind in _MAKES_ROOM:
        return
    try:
        services.capacity.check()
    except Overloaded:
        if not await services.store.gaps.is_awaited(target.owner_id, target.seq_id):
            raise
        services.capacity.check(is_awaited=True)


async def submit_unload(services: Services, model: ModelRecord, seq_id: int | None = None) -> Json:
    """Have a model end after everything that was sent before; ending it twice is ending it once.

    ``seq_id`` None takes the next number of the model's log.

    Raises:
        UserError: the model's requests keep taking the number that this one needs.
    """
    draft = Draft(payload.encode(payload.Payload({}, {})))
    for _ in range(_MAX_UNLOAD_TRIES):
        if model.is_ended:
            return promise(ids.request_id(model.model_id, model.applied_seq_id))
        next_seq_id = model.logged_seq_id + 1 if seq_id is None else seq_id
        target = Target(
            model.tenant_id,
            model.model_id,
            next_seq_id,
            OperationKind.UNLOAD_MODEL,
            model.base_model,
            sent=draft.body,
        )
        try:
            return await submit(services, target.submission(draft))
        except UserError:
            if seq_id is not None:
                raise
        # A request that was on its way took the number: look again which one is next.
        model = await services.store.models.get(model.model_id) or model
    raise UserError(f"model {model.model_id!r} still receives requests; unload it after them")


def promise(request_id: str) -> Json:
    """The answer that every submission gives at once."""
    owner_id = request_id.rpartition(":")[0]
    return {"request_id": request_id, "model_id": owner_id}


async def is_first_try(services: Services, request_id: str) -> bool:
    """Whether no future stands behind this request yet.

    What is refused with a 4xx is refused at the first try only: a retry must find its future.
    """
    return await services.store.futures.get(request_id) is None


def derived_seed(request_id: str) -> int:
    """A seed for a request that sent none: a retry after a crash draws the same numbers."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "little")
