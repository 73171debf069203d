"""Copying a checkpoint, also another tenant's published one, into a training run of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import secrets
import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Header

from cyclora_core import ids
from cyclora_core.errors import NotFound, Overloaded, Unavailable, UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.records import Checkpoint
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_server import access, projects, validate
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.problems import InvalidBody
from cyclora_server.routes.checkpoints import expiry
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.wire import bodies

router = APIRouter(prefix="/api/v1", tags=["weights"], dependencies=needs_key)

UNFINISHED_KEPT_S = 3600.0
"""Seconds after which the files of an attempt that never got its record are deleted."""

_NAMESPACE = uuid.UUID("5cd0b8d8-3d5e-4d4b-9b4e-6f4d6d1c7c11")


@router.post(
    "/copy_weights",
    summary="Copy a checkpoint into a training run of its own, which cannot be trained on",
    description="The same `X-Idempotency-Key` always finds the same copy, also after it was "
    "deleted. The copy does not inherit the source's expiry, nor that it is published.",
    openapi_extra=documented(bodies.CopyWeights),
)
async def copy_weights(
    body: Annotated[bodies.CopyWeights, Depends(json_body(bodies.CopyWeights))],
    identity: IdentityDep,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None, Header(alias="X-Idempotency-Key", max_length=200)
    ] = None,
    access_token: Annotated[str | None, Header(alias="X-Tinker-Weights-Access-Token")] = None,
) -> Json:
    validate.check_no_access_token(body.weights_access_token or access_token)
    validate.check_ttl(body.ttl_seconds)
    source_path = CheckpointPath.parse(body.source_path)
    if source_path.kind is CheckpointKind.EXTERNAL:
        raise UserError(f"path {body.source_path!r} is an export; it cannot be copied")
    run, project_id = await _destination(services, identity, body, idempotency_key)
    target = dataclasses.replace(source_path, model_id=run)
    if not await _is_made(services, identity, run, source_path):
        services.capacity.check()
        source = await access.readable_checkpoint(services, identity, source_path)
        copy = dataclasses.replace(
            source,
            path=str(target),
            tenant_id=identity.tenant_id,
            model_id=run,
            created_at_ms=services.clock.now_ms(),
            request_id="",
            # Of this attempt alone: what an earlier one left may be deleted at any moment.
            revision=str(secrets.randbits(63)),
            expires_at_ms=expiry(services, body.ttl_seconds),
            is_public=False,
        )
        await _copy(services, source, copy)
        # It may have been deleted or replaced while its files were read: some may be missing.
        after = await access.readable_checkpoint(services, identity, source_path)
        if after.revision != source.revision:
            raise Unavailable(f"checkpoint {source.path!r} was replaced while it was copied")
        await services.store.copies.record(copy, source.path, project_id, identity.key.key_id)
        # Another copy may have been made at the same moment into the same run.
        await _is_made(services, identity, run, source_path)
    return {"tinker_path": str(target)}


async def _destination(
    services: Services, identity: Identity, body: bodies.CopyWeights, idempotency_key: str | None
) -> tuple[str, str | None]:
    """The training run that will hold the copy, and its project.

    A retry must find the run of the first time, so its id follows from what the retry repeats.
    """
    if body.session_id is None and body.model_seq_id is None:
        named = body.destination_project_id or identity.key.project_id
        project_id = projects.chosen(identity, validate.project_id(named))
        once = projects.once(identity, idempotency_key or uuid.uuid4().hex)
        session_id = uuid.uuid5(_NAMESPACE, f"{identity.tenant_id} {once}")
        return ids.model_id(str(session_id), 0), project_id
    if body.session_id is None or body.model_seq_id is None or body.destination_project_id:
        raise InvalidBody(
            "copy_weights needs either destination_project_id, or session_id and model_seq_id"
        )
    await access.live_session(services, identity, body.session_id)
    return ids.model_id(body.session_id, body.model_seq_id), None


async def _is_made(
    services: Services, identity: Identity, run: str, source: CheckpointPath
) -> bool:
    """Whether the copy exists.

    Raises:
        UserError: the run exists and is something else.
    """
    model = await services.store.models.get(run)
    if model is None:
        return False
    if model.tenant_id != identity.tenant_id or model.copied_from != str(source):
        raise UserError(
            f"training run {run!r} exists, and is no copy of {str(source)!r}; use another "
            "X-Idempotency-Key or model_seq_id for each copy"
        )
    return True


async def _copy(services: Services, source: Checkpoint, copy: Checkpoint) -> None:
    """Put the files in place; without a record soon, they are deleted again.

    Raises:
        NotFound: the source was deleted meanwhile.
        Overloaded: there is no room.
    """
    files = CheckpointFiles(copy.path, copy.revision)
    await services.store.checkpoints.doom_files(files, UNFINISHED_KEPT_S)
    from_path, to_path = CheckpointPath.parse(source.path), CheckpointPath.parse(copy.path)
    try:
        await asyncio.to_thread(
            services.storage.copy_revision, from_path, source.revision, to_path, copy.revision
        )
    except FileNotFoundError:
        raise NotFound(access.no_checkpoint(from_path)) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Overloaded("there is no room on the disk for a copy of the checkpoint") from None
