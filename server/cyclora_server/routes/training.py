"""Models and what trains them; every answer is a promise except get_info's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from cyclora_core import ids
from cyclora_core.blocks import shared_tokens
from cyclora_core.operations import CreateModelBody, OperationKind, PassBody
from cyclora_core.records import NewModel
from cyclora_core.types import BaseModelInfo, ModelRecord
from cyclora_server import access, validate, validate_optimizer
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.body import documented, json_body, offload, read_body
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.submission import (
    Draft,
    Target,
    derived_seed,
    submit,
    submit_for_model,
    submit_unload,
)
from cyclora_server.validate_pass import check_pass, with_loss
from cyclora_server.wire import bodies, decode
from cyclora_server.wire.decode import PassRequest
from cyclora_server.wire.encode import PROTOBUF
from cyclora_server.wire.reading import parse, read_json
from cyclora_server.wire.tensors import Budget

router = APIRouter(prefix="/api/v1", tags=["training"], dependencies=needs_key)


@router.post(
    "/create_model",
    summary="Create an adapter; it is seq_id 0 of its model",
    openapi_extra=documented(bodies.CreateModel),
)
async def create_model(
    body: Annotated[bodies.CreateModel, Depends(json_body(bodies.CreateModel))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    # Refused with a 4xx and not with a failed future: no later request can wait behind the first
    # one of a model that does not exist, and a failed future would leave an empty training run.
    await access.live_session(services, identity, body.session_id)
    base = await access.served_base_model(services, body.base_model)
    optimizer_type = validate_optimizer.optimizer_type(body.optimizer_config)
    model_id = ids.model_id(body.session_id, body.model_seq_id)
    sent = body.model_dump_json().encode()
    kind, key_id = OperationKind.CREATE_MODEL, identity.key.key_id
    target = Target(identity.tenant_id, model_id, 0, kind, base.name, sent, key_id)
    lora = validate.lora_config(body.lora_config, base, derived_seed(target.request_id))
    draft = Draft.of(CreateModelBody(base.name, lora))
    new_model = NewModel(body.session_id, lora, body.user_metadata, optimizer_type)
    return await submit(services, target.submission(draft, new_model=new_model))


@router.post(
    "/get_info", summary="What a model is made of", openapi_extra=documented(bodies.ModelRef)
)
async def get_info(
    body: Annotated[bodies.ModelRef, Depends(json_body(bodies.ModelRef))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    model = await access.owned_model(services, identity, body.model_id)
    base = await access.base_model_of(services, model.base_model)
    return {
        "type": "get_info",
        "model_data": {
            "arch": base.architecture,
            "model_name": base.name,
            "tokenizer_id": base.tokenizer_path,
        },
        "model_id": model.model_id,
        "optimizer_config": validate_optimizer.config_json(model.optimizer_type),
        "is_lora": True,
        "lora_rank": model.lora.lora_rank,
        "model_name": base.name,
    }


@router.post(
    "/forward_backward",
    summary="Add a pass's gradients to the model's; forward only if the request says so",
    description="Protobuf `ForwardBackwardRequest`, or JSON with `forward_backward_input`.",
)
async def forward_backward(request: Request, identity: IdentityDep, services: ServicesDep) -> Json:
    raw = await read_body(request, services)
    if PROTOBUF in request.headers.get("Content-Type", ""):
        sent = await offload(len(raw), decode.pass_from_proto, raw)
    else:
        kind = OperationKind.FORWARD_BACKWARD
        sent = await offload(len(raw), decode.pass_from_json, raw, "forward_backward_input", kind)
    return await _submit_pass(services, identity, sent, raw)


@router.post("/forward", summary="Logprobs without gradients, as SDKs before 0.25 ask for them")
async def forward(request: Request, identity: IdentityDep, services: ServicesDep) -> Json:
    raw = await read_body(request, services)
    sent = await offload(
        len(raw), decode.pass_from_json, raw, "forward_input", OperationKind.FORWARD
    )
    return await _submit_pass(services, identity, sent, raw)


async def _submit_pass(
    services: Services, identity: Identity, sent: PassRequest, raw: bytes
) -> Json:
    budget = Budget(services.settings.max_decoded_bytes)

    def make(body: PassBody, base: BaseModelInfo) -> Draft:
        check_pass(body, base)
        tokens = [datum.tokens for datum in body.data]
        datum_tokens = [each.size for each in tokens]
        return Draft.of(body, sum(datum_tokens), datum_tokens, shared_tokens(tokens))

    async def draft(model: ModelRecord, base: BaseModelInfo) -> Draft:
        body = await offload(len(raw), sent.decode, budget)
        if body.loss_id is not None:
            body = with_loss(body, await access.custom_loss_of(services, model, body.loss_id))
        return await offload(len(raw), make, body, base)

    return await submit_for_model(
        services,
        identity,
        model_id=sent.model_id,
        seq_id=sent.seq_id,
        kind=sent.kind,
        sent=raw,
        draft=draft,
    )


@router.post(
    "/optim_step",
    summary="One step of the model's optimizer with the gradients since the last one",
    openapi_extra=documented(bodies.OptimStep),
)
async def optim_step(request: Request, identity: IdentityDep, services: ServicesDep) -> Json:
    raw = await read_body(request, services)
    value = read_json(raw)
    numbered = parse(bodies.Numbered, value)

    async def draft(model: ModelRecord, _base: BaseModelInfo) -> Draft:
        body = parse(bodies.OptimStep, value)
        return Draft.of(validate_optimizer.optim_step(body, model.optimizer_type))

    return await submit_for_model(
        services,
        identity,
        model_id=numbered.model_id,
        seq_id=numbered.seq_id,
        kind=OperationKind.OPTIM_STEP,
        sent=raw,
        draft=draft,
    )


@router.post(
    "/unload_model",
    summary="Let go of a model, as SDKs before 0.26 ask for it",
    openapi_extra=documented(bodies.ModelRef),
)
async def unload_model(
    body: Annotated[bodies.ModelRef, Depends(json_body(bodies.ModelRef))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    model = await access.owned_model(services, identity, body.model_id)
    # SDKs before 0.26 do not number this request; they send it when everything else has finished.
    return await submit_unload(services, model, body.seq_id or None)
