"""Uploading an adapter that was trained elsewhere with PEFT."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from cyclora_core import ids
from cyclora_core.errors import CycloraError, PayloadTooLarge, Unavailable, UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.quotas import Excess, Quota
from cyclora_core.records import Checkpoint
from cyclora_server import access, projects, validate
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.intake import TooSlow, in_time
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.uploads.receive import Receiver, Upload

router = APIRouter(prefix="/api/v1", tags=["weights"], dependencies=needs_key)

_NAMESPACE = uuid.UUID("0c7f2f0e-6f43-4c5a-9d52-3a1f8f0d9b64")
_MAX_DRAINED_BYTES = 64 * 1024 * 1024
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/adapters",
    summary="Upload an adapter trained elsewhere with PEFT; it can be trained on and sampled",
    description="The body is a tar of `adapter_config.json` and `adapter_model.safetensors`. The "
    "answer's `tinker_path` is a training checkpoint without optimizer state, in a training run of "
    "its own. The same `X-Idempotency-Key` with the same body always finds the same one.",
    openapi_extra=_BODY,
)
async def upload_adapter(
    request: Request,
    identity: IdentityDep,
    services: ServicesDep,
    base_model: Annotated[str, Query(max_length=300)],
    name: Annotated[str, Query()] = "adapter",
    idempotency_key: Annotated[
        str | None, Header(alias="X-Idempotency-Key", max_length=200)
    ] = None,
) -> Json:
    chunks = in_time(request.stream(), services.settings.body_grace_s)
    try:
        _check_headers(request, services)
        base = await access.served_base_model(services, base_model)
        modules = await services.store.base_models.target_modules(base.name)
        if not modules:
            raise Unavailable(f"no worker has said yet what an adapter of {base.name!r} looks like")
        if any(module.num_experts for module in modules):
            raise UserError(f"{base.name!r} has experts; adapters of it cannot be uploaded")
        once = projects.once(identity, idempotency_key or uuid.uuid4().hex)
        session_id = uuid.uuid5(_NAMESPACE, f"{identity.tenant_id} {once}")
        path = CheckpointPath(
            ids.model_id(str(session_id), 0),
            CheckpointKind.TRAINING,
            validate.checkpoint_name(name, 0),
        )
        key = identity.key
        upload = Upload(key.tenant_id, path, base, modules, key.key_id, key.project_id)
        return await _upload(services, upload, Receiver(services, upload, chunks))
    except CycloraError:
        await _drain(chunks)
        raise


async def _upload(services: Services, upload: Upload, receiver: Receiver) -> Json:
    run = upload.path.model_id
    if await services.store.models.get(run) is None:
        checkpoint = await receiver.receive()
        try:
            await _check_quotas(services, checkpoint)
        except UserError:
            await receiver.discard()
            raise
        uploaded_as = await receiver.digest()
        is_first = await services.store.copies.record(
            checkpoint, uploaded_as, upload.project_id, upload.key_id
        )
        if not is_first:
            await receiver.discard()
    else:
        uploaded_as = await receiver.digest()
    # A retry, perhaps one that ran beside us, may have been recorded first.
    model = await services.store.models.get(run)
    if model is None or model.copied_from != uploaded_as:
        raise UserError(
            "this X-Idempotency-Key was used before for another upload; use another key for each"
        )
    return {
        "tinker_path": str(upload.path),
        "training_run_id": run,
        "base_model": model.base_model,
        "lora_rank": model.lora.lora_rank,
        "train_attn": model.lora.train_attn,
        "train_mlp": model.lora.train_mlp,
        "train_unembed": model.lora.train_unembed,
    }


async def _check_quotas(services: Services, checkpoint: Checkpoint) -> None:
    """Refuse what the tenant may not have; recording it looks at the bytes again."""
    tenant_id, now_ms = checkpoint.tenant_id, services.clock.now_ms()
    quotas = await services.store.quotas.of(tenant_id)
    use = await services.store.quotas.use(tenant_id)
    limit, rank = quotas.max_rank, checkpoint.lora.lora_rank
    if limit is not None and rank > limit:
        raise Excess(Quota.MAX_RANK, limit, 0, rank, now_ms).error()
    limit, size = quotas.max_stored_bytes, checkpoint.num_bytes
    if limit is not None and use.stored_bytes + size > limit:
        raise Excess(Quota.MAX_STORED_BYTES, limit, use.stored_bytes, size, now_ms).error()


def _check_headers(request: Request, services: Services) -> None:
    limit = services.settings.max_upload_bytes
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise PayloadTooLarge(f"the adapter has {declared} bytes; at most {limit} are accepted")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UserError(f"Content-Encoding {encoding[:60]!r} is not supported here; send it plain")


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read on for a while: closing on a client that still sends may cost it our answer."""
    num_bytes = 0
    with suppress(TooSlow):
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > _MAX_DRAINED_BYTES:
                return
