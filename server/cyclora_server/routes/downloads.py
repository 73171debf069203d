"""Files of checkpoints: signed URLs for whoever may read one, and the files behind these URLs.

Clients fetch the files with bare GETs, so the URL is the right to read. It names a revision: what
replaces the checkpoint later is not what was signed. Once the checkpoint is deleted or has expired,
so have its URLs; those that another tenant got end when it is taken back, and all that a key asked
for end with the key.
"""

from __future__ import annotations

import asyncio
import os
from email.utils import formatdate
from enum import StrEnum

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound, UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.peft import COMPLETE_FILE, OPTIMIZER_FILE
from cyclora_core.records import Checkpoint
from cyclora_core.storage import StoredFile
from cyclora_server import access
from cyclora_server.archive import archive, num_archive_bytes
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.held_response import HeldResponse
from cyclora_server.routes.checkpoints import ONE_CHECKPOINT, checkpoint_path
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.signed_urls import check_signed, signed_url, url_expiry

_PREFIX = "/api/v1"

router = APIRouter(prefix=_PREFIX, tags=["downloads"], dependencies=needs_key)
public_router = APIRouter(prefix=_PREFIX, tags=["downloads"])

_REVISION = "{right}/{run}/{kind}/{name}/{revision}"
_MEDIA_TYPE = "application/octet-stream"
_TAR = "application/x-tar"
_HEADERS = {"Cache-Control": "private, no-transform"}


class _Right(StrEnum):
    """By which right a URL was handed out."""

    OWNED = "owned"
    PUBLISHED = "published"
    """Ends when the checkpoint is taken back."""


@router.get(
    f"{ONE_CHECKPOINT}/external_weights_urls",
    summary="Signed URLs of an export's files, to be fetched without an API key",
)
async def external_weights_urls(
    run: str,
    kind: CheckpointKind,
    name: str,
    request: Request,
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    path = checkpoint_path(run, kind, name)
    if kind is not CheckpointKind.EXTERNAL:
        raise UserError(
            f"checkpoint {str(path)!r} is no export; make one with save_weights_external"
        )
    checkpoint = await access.readable_checkpoint(services, identity, path)
    files = [each for each in await _files(services, checkpoint) if each.name != COMPLETE_FILE]
    expires_at_ms = url_expiry(services)
    folder = f"{_PREFIX}/files/{_signed_part(identity, checkpoint)}"
    return {
        "urls": {
            each.name: await signed_url(
                request, services, identity, f"{folder}/{each.name}", expires_at_ms
            )
            for each in files
        },
        "expires": as_datetime(expires_at_ms).isoformat(),
    }


@router.get(
    f"{ONE_CHECKPOINT}/archive",
    summary="Leads to a tar of a checkpoint's adapter; for SDKs before 0.36",
    status_code=302,
    response_class=Response,
)
async def get_archive(
    run: str,
    kind: CheckpointKind,
    name: str,
    request: Request,
    identity: IdentityDep,
    services: ServicesDep,
) -> Response:
    path = checkpoint_path(run, kind, name)
    checkpoint = await access.readable_checkpoint(services, identity, path)
    await _adapter_files(services, checkpoint)
    expires_at_ms = url_expiry(services)
    tar = f"{_PREFIX}/archives/{_signed_part(identity, checkpoint)}"
    headers = {
        "Location": await signed_url(request, services, identity, tar, expires_at_ms),
        "Expires": formatdate(expires_at_ms / 1000, usegmt=True),
    }
    return Response(status_code=302, headers=headers)


@public_router.get(
    f"/files/{_REVISION}/{{file}}",
    summary="One file of a checkpoint, or a range of it, by its signed URL",
    response_class=FileResponse,
)
async def get_file(
    right: _Right,
    run: str,
    kind: CheckpointKind,
    name: str,
    revision: str,
    file: str,
    request: Request,
    services: ServicesDep,
) -> Response:
    path = checkpoint_path(run, kind, name)
    part = f"{right}/{run}/{path.checkpoint_id}/{revision}"
    key_id = await check_signed(request, services, f"{_PREFIX}/files/{part}/{file}")
    checkpoint = await _signed_checkpoint(services, right, path, revision)
    for stored in await _files(services, checkpoint):
        if stored.name == file:
            # FileResponse would answer for a file deleted right now as if that were our fault.
            found = await asyncio.to_thread(_stat, stored, path)
            response = FileResponse(
                stored.path,
                headers=_HEADERS,
                media_type=_MEDIA_TYPE,
                filename=stored.name,
                stat_result=found,
            )
            return HeldResponse(response, services.key_watch, key_id)
    raise NotFound(f"checkpoint {str(path)!r} has no file {file[:140]!r}")


@public_router.get(
    f"/archives/{_REVISION}",
    summary="The adapter of a checkpoint as a tar, by its signed URL",
    response_class=StreamingResponse,
)
async def get_tar(
    right: _Right,
    run: str,
    kind: CheckpointKind,
    name: str,
    revision: str,
    request: Request,
    services: ServicesDep,
) -> Response:
    path = checkpoint_path(run, kind, name)
    part = f"{right}/{run}/{path.checkpoint_id}/{revision}"
    key_id = await check_signed(request, services, f"{_PREFIX}/archives/{part}")
    checkpoint = await _signed_checkpoint(services, right, path, revision)
    files = await _adapter_files(services, checkpoint)
    response = StreamingResponse(
        archive(files, checkpoint.created_at_ms // 1000),
        media_type=_TAR,
        headers={
            **_HEADERS,
            "Content-Length": str(num_archive_bytes(files)),
            "Content-Disposition": f'attachment; filename="{name}.tar"',
        },
    )
    return HeldResponse(response, services.key_watch, key_id)


def _signed_part(identity: Identity, checkpoint: Checkpoint) -> str:
    """What of a URL's path says whose right it is, and to which files."""
    right = _Right.OWNED if checkpoint.tenant_id == identity.tenant_id else _Right.PUBLISHED
    kind, name = checkpoint.kind, checkpoint.name
    return f"{right}/{checkpoint.model_id}/{kind}/{name}/{checkpoint.revision}"


async def _signed_checkpoint(
    services: Services, right: _Right, path: CheckpointPath, revision: str
) -> Checkpoint:
    """The checkpoint of a URL that we signed, if it is still the one that was meant then."""
    checkpoint = await services.store.checkpoints.get(str(path))
    is_there = (
        checkpoint is not None
        and checkpoint.revision == revision
        and not checkpoint.has_expired(services.clock.now_ms())
        and (right is _Right.OWNED or checkpoint.is_public)
    )
    if checkpoint is None or not is_there:
        raise NotFound(access.no_checkpoint(path))
    return checkpoint


async def _files(services: Services, checkpoint: Checkpoint) -> list[StoredFile]:
    """All files of a checkpoint.

    Raises:
        NotFound: it was deleted this very moment.
    """
    path = CheckpointPath.parse(checkpoint.path)
    files = await asyncio.to_thread(services.storage.checkpoint_files, path, checkpoint.revision)
    if not files:
        raise NotFound(access.no_checkpoint(path))
    return files


async def _adapter_files(services: Services, checkpoint: Checkpoint) -> list[StoredFile]:
    """Those that PEFT reads, without our optimizer state."""
    files = await _files(services, checkpoint)
    return [each for each in files if each.name != OPTIMIZER_FILE]


def _stat(file: StoredFile, path: CheckpointPath) -> os.stat_result:
    try:
        return file.path.stat()
    except FileNotFoundError:
        raise NotFound(access.no_checkpoint(path)) from None
