"""Sessions: one per connected client process."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query

from cyclora_core import accounts, ids
from cyclora_core.clock import as_datetime
from cyclora_core.errors import Forbidden
from cyclora_core.records import Session
from cyclora_server import access, projects, session_end, session_search, validate
from cyclora_server.auth import Identity, IdentityDep, needs_key, user_urn
from cyclora_server.body import documented, json_body
from cyclora_server.routes.scope import AccessScope, Scope
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.wire import bodies

router = APIRouter(prefix="/api/v1", tags=["sessions"], dependencies=needs_key)

MAX_DETAIL_CHARS = 2000
MAX_SEARCHED = 5000
_AT_ONCE = 200


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
        project_id=projects.chosen(identity, _project_id(body)),
        tags=body.tags,
        user_metadata=body.user_metadata,
    )
    once = idempotency_key and projects.once(identity, idempotency_key)
    created = await services.store.sessions.create(session, once)
    return {"type": "create_session", "session_id": created.session_id}


def _project_id(body: bodies.CreateSession) -> str | None:
    return None if body.project_id is None else validate.project_id(body.project_id)


@router.post(
    "/session_heartbeat",
    summary="Keep a session alive; 410 once it has ended",
    openapi_extra=documented(bodies.SessionRef),
)
async def session_heartbeat(
    body: Annotated[bodies.SessionRef, Depends(json_body(bodies.SessionRef))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    await access.live_session(services, identity, body.session_id)
    await services.store.sessions.heartbeat(body.session_id)
    return {"type": "session_heartbeat"}


@router.post(
    "/sessions/{session_id}/finish",
    summary="End a session; the first reason stands",
    description="Passes, steps and saves that were sent before are still run. Then the session's "
    "models end: their state is dropped, and only checkpoints saved under a name are kept. Samples "
    "of weights that have no name fail if they have not begun. Of `detail`, the first "
    f"{MAX_DETAIL_CHARS} characters are kept. A session of which nothing is heard ends the same "
    "way after a while. A key ends no more than it may begin: without the scope `train` no session "
    "that has models, without `sample` too none that samples.",
    openapi_extra=documented(bodies.FinishSession),
)
async def finish_session(
    session_id: str,
    body: Annotated[bodies.FinishSession, Depends(json_body(bodies.FinishSession))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    await access.owned_session(services, identity, session_id)
    await _check_may_end(services, identity, session_id)
    detail = None if body.detail is None else body.detail[:MAX_DETAIL_CHARS]
    await services.store.sessions.finish(session_id, body.reason.type, detail)
    # Also when it is finished again: the first time may have been cut off half-way.
    await session_end.clean_up(services, session_id)
    return {}


async def _check_may_end(services: Services, identity: Identity, session_id: str) -> None:
    """Let only those end a session who could have opened what ends with it.

    Every client closes its own session, so the route itself is open to keys of any scope.

    Raises:
        Forbidden: the key has no scope for it.
    """
    scopes = identity.key.scopes
    if accounts.Scope.TRAIN in scopes:
        return
    if await services.store.models.of_session(session_id):
        raise Forbidden(f"session {session_id} has models; to end it needs the scope train")
    if accounts.Scope.SAMPLE in scopes:
        return
    if await services.store.sampling.of_session(session_id):
        raise Forbidden(f"session {session_id} samples; to end it needs the scope sample or train")


@router.put(
    "/sessions/{session_id}/project",
    summary="Move a session into a project; its runs and checkpoints go with it",
    openapi_extra=documented(bodies.AssignProject),
)
async def assign_project(
    session_id: str,
    body: Annotated[bodies.AssignProject, Depends(json_body(bodies.AssignProject))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    session = await access.owned_session(services, identity, session_id)
    project_id = validate.project_id(body.project_id)
    projects.chosen(identity, project_id)
    if session.project_id != project_id:
        await services.store.sessions.assign_project(session, project_id, identity.key.key_id)
    return {}


@router.get(
    "/sessions",
    summary="The tenant's sessions, newest first",
    description="Sessions are never published: `access_scope=accessible` lists the same.",
)
async def list_sessions(
    identity: IdentityDep,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    _scope: Scope = AccessScope.OWNED,
) -> Json:
    bound = identity.key.project_id
    if bound is None:
        sessions = await services.store.sessions.list(identity.tenant_id, offset, limit)
    else:
        found = projects.sessions(services, identity.tenant_id, bound)
        sessions = [each async for each in found][offset : offset + limit]
    return {"sessions": [session.session_id for session in sessions]}


@router.get("/sessions/{session_id}", summary="What a session has opened")
async def get_session(
    session_id: str,
    identity: IdentityDep,
    services: ServicesDep,
    _scope: Scope = AccessScope.OWNED,
) -> Json:
    session = await access.owned_session(services, identity, session_id)
    return {
        "training_run_ids": await services.store.models.of_session(session_id),
        "sampler_ids": await services.store.sampling.of_session(session_id),
        "user_metadata": dict(session.user_metadata),
        "display_name": session.display_name,
    }


@router.post(
    "/sessions/search",
    summary="The tenant's sessions that fit, newest first",
    description="A page may be short and still name a `next_cursor`: one request looks at "
    f"{MAX_SEARCHED} sessions at most.",
    openapi_extra=documented(bodies.SearchSessions),
)
async def search_sessions(
    body: Annotated[bodies.SearchSessions, Depends(json_body(bodies.SearchSessions))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    position = (sys.maxsize // 1000, "")
    if body.cursor is not None:
        position = (_as_ms(body.cursor.last_created_at), body.cursor.last_session_id)
    found: list[Session] = []
    num_searched = 0
    is_exhausted = False
    while len(found) < body.limit and num_searched < MAX_SEARCHED and not is_exhausted:
        page = await services.store.sessions.older_than(identity.tenant_id, *position, _AT_ONCE)
        is_exhausted = len(page) < _AT_ONCE
        for session in page:
            position = (session.created_at_ms, session.session_id)
            is_open = projects.is_open(identity, projects.of_session(session))
            if is_open and session_search.matches(session, body):
                found.append(session)
                if len(found) == body.limit:
                    is_exhausted = is_exhausted and session is page[-1]
                    break
        num_searched += len(page)
    summaries = await asyncio.gather(*(_summary(services, each) for each in found))
    return {"sessions": summaries, "next_cursor": None if is_exhausted else _cursor(*position)}


async def _summary(services: Services, session: Session) -> dict[str, Any]:
    store = services.store
    model_ids = await store.models.of_session(session.session_id)
    checkpoints = [each for run in model_ids for each in await store.checkpoints.of_model(run)]
    return {
        "session_id": session.session_id,
        "created_at": as_datetime(session.created_at_ms).isoformat(),
        "owner": user_urn(session.tenant_id),
        "project_id": projects.of_session(session),
        "status": session_search.status(session),
        "display_name": session.display_name,
        "user_metadata": dict(session.user_metadata),
        "checkpoints_count": len(checkpoints),
        "checkpoint_storage_bytes": sum(each.num_bytes for each in checkpoints),
    }


def _cursor(created_at_ms: int, session_id: str) -> dict[str, Any]:
    return {
        "last_created_at": as_datetime(created_at_ms).isoformat(),
        "last_session_id": session_id,
    }


def _as_ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)
