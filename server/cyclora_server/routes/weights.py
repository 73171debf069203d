"""Saving and loading adapter weights; every answer is a promise except weights_info's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from cyclora_core import age, ids
from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoadWeightsBody, OperationKind, SaveWeightsBody
from cyclora_core.records import Checkpoint, NewModel
from cyclora_core.types import BaseModelInfo, ModelRecord
from cyclora_server import access, validate, validate_optimizer
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.body import documented, json_body, read_body
from cyclora_server.problems import InvalidBody
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.submission import (
    Draft,
    Target,
    is_first_try,
    promise,
    submit,
    submit_for_model,
)
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import parse, read_json

router = APIRouter(prefix="/api/v1", tags=["weights"], dependencies=needs_key)


@router.post(
    "/save_weights",
    summary="Save a training checkpoint: adapter weights and optimizer state",
    openapi_extra=documented(bodies.SaveWeights),
)
async def save_weights(request: Request, identity: IdentityDep, services: ServicesDep) -> Json:
    raw = await read_body(request, services)
    value = read_json(raw)
    numbered = parse(bodies.Numbered, value)

    async def draft(_model: ModelRecord, _base: BaseModelInfo) -> Draft:
        body = parse(bodies.SaveWeights, value)
        return Draft.of(await _named_save(services, body, CheckpointKind.TRAINING))

    return await submit_for_model(
        services,
        identity,
        model_id=numbered.model_id,
        seq_id=numbered.seq_id,
        kind=OperationKind.SAVE_WEIGHTS,
        sent=raw,
        draft=draft,
    )


@router.post(
    "/save_weights_for_sampler",
    summary="Save adapter weights to sample from: named, or behind a new sampling session",
    openapi_extra=documented(bodies.SaveWeightsForSampler),
)
async def save_weights_for_sampler(
    request: Request, identity: IdentityDep, services: ServicesDep
) -> Json:
    raw = await read_body(request, services)
    value = read_json(raw)
    numbered = parse(bodies.Numbered, value)

    async def draft(model: ModelRecord, _base: BaseModelInfo) -> Draft:
        body = parse(bodies.SaveWeightsForSampler, value)
        validate.check_sampler_kind(body.kind)
        if body.sampling_session_seq_id is None:
            validate.check_named_kind(body.kind)
            return Draft.of(await _named_save(services, body, CheckpointKind.SAMPLER))
        return Draft.of(_ephemeral_save(model, body, body.sampling_session_seq_id))

    return await submit_for_model(
        services,
        identity,
        model_id=numbered.model_id,
        seq_id=numbered.seq_id,
        kind=OperationKind.SAVE_WEIGHTS_FOR_SAMPLER,
        sent=raw,
        draft=draft,
    )


@router.post(
    "/save_weights_external",
    summary="Save adapter weights in PEFT's format, to be downloaded",
    description="With `age_encryption_recipients` every file is encrypted to them and its name "
    "ends in `.age`.",
    openapi_extra=documented(bodies.SaveWeightsExternal),
)
async def save_weights_external(
    request: Request, identity: IdentityDep, services: ServicesDep
) -> Json:
    raw = await read_body(request, services)
    value = read_json(raw)
    numbered = parse(bodies.Numbered, value)

    async def draft(_model: ModelRecord, _base: BaseModelInfo) -> Draft:
        body = parse(bodies.SaveWeightsExternal, value)
        validate.check_ttl(body.ttl_seconds)
        recipients = body.age_encryption_recipients
        if recipients is not None:
            age.check_recipients(recipients)
        name = validate.checkpoint_name(body.path, body.seq_id)
        path = str(CheckpointPath(body.model_id, CheckpointKind.EXTERNAL, name))
        await _check_free(services, path, "choose another name or delete it")
        return Draft.of(
            SaveWeightsBody(path, ttl_s=body.ttl_seconds, age_recipients=recipients or [])
        )

    return await submit_for_model(
        services,
        identity,
        model_id=numbered.model_id,
        seq_id=numbered.seq_id,
        kind=OperationKind.SAVE_WEIGHTS_EXTERNAL,
        sent=raw,
        draft=draft,
    )


async def _named_save(
    services: Services, body: bodies.SaveWeights, kind: CheckpointKind
) -> SaveWeightsBody:
    validate.check_ttl(body.ttl_seconds)
    name = validate.checkpoint_name(body.path, body.seq_id)
    path = str(CheckpointPath(body.model_id, kind, name))
    if not body.overwrite:
        await _check_free(services, path, "choose another name, delete it, or set overwrite")
    return SaveWeightsBody(
        path=path,
        ttl_s=body.ttl_seconds,
        overwrite=body.overwrite,
        user_metadata=body.user_metadata,
    )


async def _check_free(services: Services, path: str, remedy: str) -> None:
    """Refuse a path under which there is a checkpoint already."""
    earlier = await services.store.checkpoints.get(path)
    if earlier is not None and not earlier.has_expired(services.clock.now_ms()):
        raise UserError(f"checkpoint {path!r} exists; {remedy}")


def _ephemeral_save(
    model: ModelRecord, body: bodies.SaveWeightsForSampler, sampling_session_seq_id: int
) -> SaveWeightsBody:
    if body.path is not None:
        raise UserError(
            f"path {body.path[:140]!r} and sampling_session_seq_id {sampling_session_seq_id} were "
            "both sent; a save is either named or behind a sampling session"
        )
    # All in-flight samplers of a model share one slot; a snapshot has a name that no other gets.
    is_shared = body.kind == "inflight"
    name = f"{validate.EPHEMERAL_PREFIX}{'inflight' if is_shared else body.seq_id}"
    return SaveWeightsBody(
        path=str(CheckpointPath(model.model_id, CheckpointKind.SAMPLER, name)),
        sampling_session_id=ids.sampling_session_id(model.session_id, sampling_session_seq_id),
        overwrite=is_shared,
    )


@router.post(
    "/load_weights",
    summary="Load a training checkpoint into a model, or as the first request of a new one",
    openapi_extra=documented(bodies.LoadWeights),
)
async def load_weights(request: Request, identity: IdentityDep, services: ServicesDep) -> Json:
    raw = await read_body(request, services)
    value = read_json(raw)
    if isinstance(value, dict) and "session_id" in value and value["session_id"] is not None:
        body = parse(bodies.LoadWeights, value)
        return await _create_via_load(services, identity, body, raw)
    numbered = parse(bodies.Numbered, value)

    async def draft(model: ModelRecord, base: BaseModelInfo) -> Draft:
        body = parse(bodies.LoadWeights, value)
        checkpoint = await _training_checkpoint(services, identity, body, base.name)
        validate_optimizer.check_load(model, body.optimizer_config, checkpoint, body.optimizer)
        for name in ("lora_rank", "lora_alpha", "train_attn", "train_mlp", "train_unembed"):
            theirs, mine = getattr(checkpoint.lora, name), getattr(model.lora, name)
            if theirs != mine:
                raise UserError(
                    f"checkpoint {body.path!r} has {name} {theirs}; the model has {mine}, and a "
                    "load does not change it; create a model from the checkpoint instead"
                )
        return Draft.of(_load_body(body, checkpoint))

    return await submit_for_model(
        services,
        identity,
        model_id=numbered.model_id,
        seq_id=numbered.seq_id,
        kind=OperationKind.LOAD_WEIGHTS,
        sent=raw,
        draft=draft,
    )


async def _create_via_load(
    services: Services, identity: Identity, body: bodies.LoadWeights, raw: bytes
) -> Json:
    """A new model whose seq_id 0 is this load; refused like create_model, with a 4xx."""
    if body.session_id is None or body.model_seq_id is None or body.model_id is not None:
        raise InvalidBody(
            "load_weights needs either model_id and seq_id, or session_id and model_seq_id"
        )
    await access.live_session(services, identity, body.session_id)
    model_id = ids.model_id(body.session_id, body.model_seq_id)
    request_id = ids.request_id(model_id, 0)
    if not await is_first_try(services, request_id):
        # The checkpoint may be gone by the time of a retry; the load's future is not.
        return promise(request_id)
    checkpoint = await _training_checkpoint(services, identity, body, body.base_model)
    optimizer_type = validate_optimizer.optimizer_of_new_model(
        body.optimizer_config, checkpoint, body.optimizer
    )
    await access.served_base_model(services, checkpoint.base_model)
    target = Target(
        identity.tenant_id,
        model_id,
        0,
        OperationKind.LOAD_WEIGHTS,
        checkpoint.base_model,
        raw,
        identity.key.key_id,
    )
    new_model = NewModel(body.session_id, checkpoint.lora, body.user_metadata, optimizer_type)
    draft = Draft.of(_load_body(body, checkpoint))
    return await submit(services, target.submission(draft, new_model=new_model))


async def _training_checkpoint(
    services: Services, identity: Identity, body: bodies.LoadWeights, base_model: str | None
) -> Checkpoint:
    """The checkpoint to load; ``base_model`` None takes whichever it was trained on."""
    validate.check_no_access_token(body.weights_access_token)
    path = CheckpointPath.parse(body.path)
    if path.kind is not CheckpointKind.TRAINING:
        raise UserError(
            f"path {body.path!r} holds {path.kind}; a model loads from {CheckpointKind.TRAINING}"
        )
    checkpoint = await access.readable_checkpoint(services, identity, path)
    if base_model is not None and checkpoint.base_model != base_model:
        raise UserError(
            f"checkpoint {body.path!r} belongs to base model {checkpoint.base_model!r}; it does "
            f"not fit {base_model[:200]!r}"
        )
    if body.optimizer and not checkpoint.has_optimizer:
        raise UserError(f"checkpoint {body.path!r} holds no optimizer state; set optimizer false")
    return checkpoint


def _load_body(body: bodies.LoadWeights, checkpoint: Checkpoint) -> LoadWeightsBody:
    return LoadWeightsBody(checkpoint.path, body.optimizer, checkpoint.base_model, checkpoint.lora)


@router.post(
    "/weights_info",
    summary="What a checkpoint was made of",
    openapi_extra=documented(bodies.WeightsInfo),
)
async def weights_info(
    body: Annotated[bodies.WeightsInfo, Depends(json_body(bodies.WeightsInfo))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    path = CheckpointPath.parse(body.tinker_path)
    checkpoint = await access.readable_checkpoint(services, identity, path)
    return {
        "base_model": checkpoint.base_model,
        "optimizer_config": validate_optimizer.config_json(checkpoint.optimizer_type),
        "is_lora": True,
        "lora_rank": checkpoint.lora.lora_rank,
        "train_unembed": checkpoint.lora.train_unembed,
        "train_mlp": checkpoint.lora.train_mlp,
        "train_attn": checkpoint.lora.train_attn,
    }
