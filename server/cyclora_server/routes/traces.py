"""A session's timeline: a signed URL of it, and the file behind the URL."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cyclora_core import ids
from cyclora_core.errors import NotFound
from cyclora_core.store.traces import MAX_TRACED, TRACE_KEPT_S
from cyclora_server import access
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import offload
from cyclora_server.services import Json, ServicesDep
from cyclora_server.signed_urls import check_signed, signed_url, url_expiry
from cyclora_server.trace import chrome_trace

router = APIRouter(prefix="/api/v1", tags=["sessions"], dependencies=needs_key)
public_router = APIRouter(prefix="/api/v1", tags=["sessions"])

MAX_WAITING = 1000
"""Operations of each model that wait and are shown."""

_BYTES_PER_OPERATION = 1000


@router.get(
    "/sessions/{session_id}/trace_export",
    summary="A signed URL of the session's timeline, as a file for Perfetto",
    description="When each operation was queued, dispatched, running in which cycle, and settled; "
    f"the newest {MAX_TRACED} of them, until {TRACE_KEPT_S // 3600} hours after the last one. Of a "
    "pass that was spread over several cycles, the last.",
)
async def export_trace(
    session_id: str, request: Request, identity: IdentityDep, services: ServicesDep
) -> Json:
    await access.owned_session(services, identity, session_id)
    # Made when it is fetched: that takes no longer than to look whether it is ready.
    url = await signed_url(request, services, identity, _path(session_id), url_expiry(services))
    return {"status": "ready", "url": url}


@public_router.get(
    "/traces/{session_id}",
    summary="A session's timeline, by its signed URL",
    response_class=Response,
)
async def get_trace(session_id: str, request: Request, services: ServicesDep) -> Response:
    await check_signed(request, services, _path(session_id))
    if not ids.is_session_id(session_id):
        raise NotFound(f"session {session_id[:100]!r} does not exist")
    traces = services.store.traces
    settled = await traces.settled(session_id)
    model_ids = await services.store.models.of_session(session_id)
    waiting = await traces.waiting(model_ids, MAX_WAITING) if model_ids else []
    # One that settled between the two looks is in both.
    known = {each.request_id for each in settled}
    operations = [*settled, *(each for each in waiting if each.request_id not in known)]
    now_ms = services.clock.now_ms()
    content = await offload(
        len(operations) * _BYTES_PER_OPERATION, chrome_trace, operations, now_ms
    )
    headers = {"Content-Disposition": f'attachment; filename="{session_id}.pftrace"'}
    return Response(content, media_type="application/json", headers=headers)


def _path(session_id: str) -> str:
    return f"/api/v1/traces/{session_id}"
