"""Sampling sessions and samples."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from cyclora_core import ids
from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import OperationKind
from cyclora_core.records import SamplingSession
from cyclora_core.samples import SampleBody
from cyclora_core.types import BaseModelInfo
from cyclora_server import access
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.body import documented, json_body, offload, read_body
from cyclora_server.problems import InvalidBody
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.submission import Draft, Target, derived_seed, submit_draft
from cyclora_server.validate_sample import (
    MAX_SAMPLES,
    check_sample,
    max_tokens_of,
    sampling_params,
)
from cyclora_server.wire import bodies, decode
from cyclora_server.wire.reading import parse, read_json

router = APIRouter(prefix="/api/v1", tags=["sampling"], dependencies=needs_key)


@router.post(
    "/create_sampling_session",
    summary="Open a sampling session on a base model or a checkpoint",
    openapi_extra=documented(bodies.CreateSamplingSession),
)
async def create_sampling_session(
    body: Annotated[bodies.CreateSamplingSession, Depends(json_body(bodies.CreateSamplingSession))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    await access.live_session(services, identity, body.session_id)
    base_model, is_shared = await weights_to_sample(services, identity, body)
    record = SamplingSession(
        sampling_session_id=ids.sampling_session_id(body.session_id, body.sampling_session_seq_id),
        tenant_id=identity.tenant_id,
        session_id=body.session_id,
        base_model=base_model,
        weights_path=body.model_path,
        model_path=body.model_path,
        created_at_ms=services.clock.now_ms(),
        is_shared=is_shared,
    )
    created = await services.store.sampling.create(record)
    if (created.base_model, created.weights_path) != (base_model, body.model_path):
        raise UserError(
            f"sampling session {created.sampling_session_id!r} exists and samples "
            f"{created.weights_path or created.base_model!r}; number each one differently"
        )
    return {
        "type": "create_sampling_session",
        "sampling_session_id": created.sampling_session_id,
    }


async def weights_to_sample(
    services: Services, identity: Identity, body: bodies.CreateSamplingSession
) -> tuple[str, bool]:
    """The base model of a new sampling session, and whether its weights are another tenant's.

    Clients may name the base model beside a checkpoint of it.
    """
    if body.model_path is None:
        if body.base_model is None:
            raise UserError("neither base_model nor model_path was sent; one is needed")
        return (await access.served_base_model(services, body.base_model)).name, False
    path = CheckpointPath.parse(body.model_path)
    if path.kind is CheckpointKind.EXTERNAL:
        raise UserError(f"path {body.model_path!r} is an export; it cannot be sampled from")
    checkpoint = await access.readable_checkpoint(services, identity, path)
    if body.base_model not in (None, checkpoint.base_model):
        raise UserError(
            f"model_path {body.model_path!r} belongs to base model {checkpoint.base_model!r}, "
            f"not to {body.base_model!r}"
        )
    base = await access.served_base_model(services, checkpoint.base_model)
    return base.name, checkpoint.tenant_id != identity.tenant_id


@router.get("/samplers/{sampling_session_id}", summary="What a sampling session samples from")
async def get_sampler(
    sampling_session_id: str, identity: IdentityDep, services: ServicesDep
) -> Json:
    record = await access.owned_sampling_session(services, identity, sampling_session_id)
    return {
        "sampler_id": record.sampling_session_id,
        "base_model": record.base_model,
        "model_path": record.model_path,
    }


@router.post(
    "/join_sampling_session",
    summary="Get a clone id that no other client of the sampling session has",
    openapi_extra=documented(bodies.SamplingSessionRef),
)
async def join_sampling_session(
    body: Annotated[bodies.SamplingSessionRef, Depends(json_body(bodies.SamplingSessionRef))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    session_id = body.sampling_session_id
    await access.owned_sampling_session(services, identity, session_id)
    counter = await services.store.sampling.join(session_id)
    return {"type": "join_sampling_session", "client_counter": counter}


@router.post("/asample", summary="Sample tokens", openapi_extra=documented(bodies.Sample))
async def asample(request: Request, identity: IdentityDep, services: ServicesDep) -> Json:
    raw = await read_body(request, services)
    value = await offload(len(raw), read_json, raw)
    numbered = parse(bodies.NumberedSample, value)
    session = await access.owned_sampling_session(services, identity, numbered.sampling_session_id)
    base = await access.base_model_of(services, session.base_model)
    target = Target(
        identity.tenant_id,
        session.sampling_session_id,
        numbered.seq_id,
        OperationKind.SAMPLE,
        base.name,
        sent=raw,
        key_id=identity.key.key_id,
    )

    async def draft() -> Draft:
        if session.is_shared and session.weights_path is not None:
            # Its owner may have taken it back since the sampling session was opened.
            path = CheckpointPath.parse(session.weights_path)
            await access.readable_checkpoint(services, identity, path)
        max_bytes = services.settings.max_decoded_bytes
        return await offload(len(raw), _draft, value, session, base, target.request_id, max_bytes)

    answer = await submit_draft(services, target, draft)
    count = _num_samples(value)
    # The SDK insists on one id per sequence, even of a sample whose future has failed.
    answer["sample_sequence_ids"] = [f"{target.request_id}:{i}" for i in range(count)]
    return answer


def _draft(
    value: Any, session: SamplingSession, base: BaseModelInfo, request_id: str, max_bytes: int
) -> Draft:
    body = parse(bodies.Sample, value)
    prompt = decode.prompt_tokens(body.prompt)
    asked = body.target_prompt_logprobs
    targets = None if asked is None else decode.prompt_targets(asked, max_bytes)
    check_sample(body, prompt, targets, base)
    params = sampling_params(body, base, derived_seed(request_id))
    max_tokens = max_tokens_of(prompt.size, params.max_tokens, base)
    sample = SampleBody(
        prompt_tokens=prompt,
        num_samples=body.num_samples,
        params=params,
        weights_path=session.weights_path,
        prompt_logprobs=body.prompt_logprobs,
        topk_prompt_logprobs=body.topk_prompt_logprobs,
        topk_sample_logprobs=body.topk_sample_logprobs,
        prompt_alt_tokens_k=body.prompt_alt_tokens_k,
        prompt_logprobs_last_n=body.prompt_logprobs_last_n,
        targets=targets,
    )
    return Draft.of(sample, prompt.size + max_tokens * body.num_samples)


def _num_samples(value: dict[str, Any]) -> int:
    """How many sequences the client expects, as far as a refused body tells."""
    try:
        count = parse(bodies.SampleCount, value).num_samples
    except InvalidBody:
        return 1
    return min(max(count, 1), MAX_SAMPLES)


@router.post(
    "/cancel_future",
    summary="End a sample that nobody waits for; one that has ended stays as it is",
    openapi_extra=documented(bodies.CancelFuture),
)
async def cancel_future(
    body: Annotated[bodies.CancelFuture, Depends(json_body(bodies.CancelFuture))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    owner_id, _, number = body.request_id.rpartition(":")
    if ids.is_model_id(owner_id):
        await access.owned_model(services, identity, owner_id)
        raise UserError(
            f"request {body.request_id!r} is no sample; only samples can be cancelled, since what "
            "was sent to a model after it counts on it"
        )
    session = await access.owned_sampling_session(services, identity, owner_id)
    if number.isdecimal() and int(number) <= bodies.MAX_SAMPLE_SEQ_ID:
        await services.store.cancellations.cancel(
            identity.tenant_id, session.base_model, session.sampling_session_id, int(number)
        )
    return {}
