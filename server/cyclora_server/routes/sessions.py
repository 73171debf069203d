"""Sessions: one per connected client process."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query

from cyclora_core import ids
from cyclora_core.ids import CheckpointPath
from cyclora_core.records import Session
from cyclora_server import access
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.submission import submit_unload
from cyclora_server.wire import bodies

router = APIRouter(prefix="/api/v1", tags=["sessions"], dependencies=needs_key)


@router.post(
    "/create_session", summary="Open a session", openapi_extra=documented(bodies.CreateSession)
)
async def create_session(
    body: Annotated[bodies.CreateSession, Depends(json_body(bodies.CreateSession))],
    identity: IdentityDep,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None, Header(alias="X-Idempotency-Key", max_length=200)
    ] = None,
) -> Json:
    now_ms = services.clock.now_ms()
    session = Session(
        session_id=ids.new_session_id(),
        tenant_id=identity.tenant_id,
        created_at_ms=now_ms,
        last_heartbeat_at_ms=now_ms,
        sdk_version=body.sdk_version,
        display_name=body.display_name,
        project_id=body.project_id,
        tags=body.tags,
        user_metadata=body.user_metadata,
    )
    created = await services.store.sessions.create(session, idempotency_key)
    return {"type": "create_session", "session_id": created.session_id}


@router.post(
    "/session_heartbeat",
    summary="Keep a session alive; 410 once it is finished",
    openapi_extra=documented(bodies.SessionRef),
)
async def session_heartbeat(
    body: Annotated[bodies.SessionRef, Depends(json_body(bodies.SessionRef))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    await access.live_session(services, identity.tenant_id, body.session_id)
    await services.store.sessions.heartbeat(body.session_id)
    return {"type": "session_heartbeat"}


@router.post(
    "/sessions/{session_id}/finish",
    summary="End a session; the first reason stands",
    description="Passes, steps and saves that were sent before are still run. Then the session's "
    "models end: their state is dropped, and only checkpoints saved under a name are kept. Samples "
    "of weights that have no name fail if they have not begun.",
    openapi_extra=documented(bodies.FinishSession),
)
async def finish_session(
    session_id: str,
    body: Annotated[bodies.FinishSession, Depends(json_body(bodies.FinishSession))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    session = await access.owned_session(services, identity.tenant_id, session_id)
    if session.finished_reason is None:
        await services.store.sessions.finish(session_id, body.reason.type[:100])
    # Also when it is finished again: the first time may have been cut off half-way.
    await _discard_ephemeral_weights(services, session_id)
    for model_id in await services.store.models.of_session(session_id):
        model = await access.owned_model(services, identity.tenant_id, model_id)
        await submit_unload(services, model)
    return {}


async def _discard_ephemeral_weights(services: Services, session_id: str) -> None:
    """Delete what only this session's own sampling sessions could still read."""
    for model_id in await services.store.models.of_session(session_id):
        for path in await services.store.checkpoints.unlisted_of_model(model_id):
            await access.discard_checkpoint(services, CheckpointPath.parse(path))


@router.get("/sessions", summary="The tenant's sessions, newest first")
async def list_sessions(
    identity: IdentityDep,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Json:
    sessions = await services.store.sessions.list(identity.tenant_id, offset, limit)
    return {"sessions": [session.session_id for session in sessions]}


@router.get("/sessions/{session_id}", summary="What a session has opened")
async def get_session(session_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    session = await access.owned_session(services, identity.tenant_id, session_id)
    return {
        "training_run_ids": await services.store.models.of_session(session_id),
        "sampler_ids": await services.store.sampling.of_session(session_id),
        "user_metadata": dict(session.user_metadata),
        "display_name": session.display_name,
    }
