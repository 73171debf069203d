"""Redeeming promises: one at a time, or all samples of a sampling session."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from cyclora_core import ids
from cyclora_core.errors import Gone, NotFound, Overloaded
from cyclora_core.logs import name_in_log
from cyclora_core.records import Completion, Future, FutureState
from cyclora_core.types import QueueState
from cyclora_server import access, problems
from cyclora_server.auth import Identity, IdentityDep, held, needs_key
from cyclora_server.body import documented, json_body, offload
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.submission import HOW_LONG_KEPT
from cyclora_server.wire import bodies
from cyclora_server.wire.encode import Encoded, encode_result

MAX_UNANNOUNCED_BYTES = 1024 * 1024
"""Larger results are announced with their size to clients that ask for it, which bound what they
receive at one time."""


class PollRoute(APIRoute):
    """Answers 429 where other routes, or their dependencies, would answer a 5xx.

    The SDK repeats a poll that got a 5xx without any pause, and backs off from a 429.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_faults(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientDisconnect:
                raise
            except Exception as error:
                problem = problems.problem_of(error)
                problems.note(request, error)
                if problem.status < 500:
                    raise
                raise Overloaded(problem.detail) from error

        return handle_faults


router = APIRouter(
    prefix="/api/v1", tags=["futures"], dependencies=needs_key, route_class=PollRoute
)


@router.post(
    "/retrieve_future",
    summary="The result of a promise; held while it is pending, then 408",
    openapi_extra=documented(bodies.RetrieveFuture),
    response_class=Response,
)
async def retrieve_future(
    body: Annotated[bodies.RetrieveFuture, Depends(json_body(bodies.RetrieveFuture))],
    identity: IdentityDep,
    services: ServicesDep,
    accept: Annotated[str, Header()] = "",
) -> Response:
    request_id = body.request_id
    if not await access.is_open_session(services, identity, ids.session_of(request_id)):
        raise _no_request(request_id)
    hold_s = services.settings.poll_hold_s
    async with held(services, identity):
        future = await services.hub.wait(request_id, identity.tenant_id, hold_s)
    if future is None:
        raise await _missing(services, identity, request_id)
    name_in_log(request_id=request_id)
    if future.state is FutureState.PENDING:
        state, reason = await _queue_state(services, future)
        return problems.try_again(request_id, state, reason)
    # Not awaited: a note that is lost only keeps the result for longer.
    services.background.start(services.store.futures.fetched(request_id))
    encoded = await _encode(future, accept)
    size = len(encoded.content)
    if body.allow_metadata_only and size > MAX_UNANNOUNCED_BYTES:
        # The client makes room for it, asks again, and gets it then.
        metadata = {"status": "complete_metadata", "response_payload_size": size}
        return JSONResponse(metadata)
    return Response(encoded.content, media_type=encoded.media_type)


async def _encode(future: Future, accept: str) -> Encoded:
    if future.error is not None:
        return _failure(future.error.message, future.error.category)
    try:
        data = future.result
        assert data is not None, "a future that is done has a result"
        return await offload(len(data), encode_result, future.kind, data, accept)
    except Exception as error:  # noqa: BLE001 - the boundary of one future's result
        # A 5xx would be polled again at once and for ever; the result will not get better.
        return _failure(problems.report_fault(error), "server")


def _failure(message: str, category: str) -> Encoded:
    body = {"error": problems.masked(message), "category": category}
    return Encoded(json.dumps(body).encode(), "application/json")


async def _missing(services: Services, identity: Identity, request_id: str) -> Exception:
    """Why there is no such future: gone for its owner, never existed for anybody else."""
    owner_id = request_id.rpartition(":")[0]
    lookup: Callable[[Services, Identity, str], Awaitable[object]] = access.owned_model
    if ids.is_sampling_session_id(owner_id):
        lookup = access.owned_sampling_session
    elif ids.is_loss_id(request_id):
        lookup, owner_id = access.owned_session, ids.session_of(owner_id)
    try:
        await lookup(services, identity, owner_id)
    except NotFound:
        return _no_request(request_id)
    return Gone(f"the result of request {request_id!r} is no longer kept; {HOW_LONG_KEPT}")


def _no_request(request_id: str) -> NotFound:
    return NotFound(f"request {request_id[:200]!r} does not exist")


async def _queue_state(services: Services, future: Future) -> tuple[QueueState, str | None]:
    """What a waiting client is told: mostly nothing, or what keeps it waiting.

    That is its tenant's rate, or that nobody serves its base model.
    """
    store = services.store
    pause_s = await store.quotas.rate_pause_s(future.tenant_id, future.request_id)
    if pause_s is not None:
        per_minute = (await store.quotas.of(future.tenant_id)).tokens_per_minute
        return QueueState.PAUSED_RATE_LIMIT, (
            f"the rate of {per_minute} tokens per minute (quota tokens_per_minute) is used up; "
            f"work of this tenant goes on in about {math.ceil(pause_s)} s, the oldest first"
        )
    owner = await store.models.get(future.owner_id) or await store.sampling.get(future.owner_id)
    if owner is None:
        return QueueState.ACTIVE, None
    workers = await store.workers.list()
    if any(each.is_alive and each.base_model == owner.base_model for each in workers):
        return QueueState.ACTIVE, None
    return QueueState.PAUSED_CAPACITY, f"no worker serves {owner.base_model} at the moment"


@router.post(
    "/retrieve_futures",
    summary="Samples of a sampling session that finished after a cursor",
    openapi_extra=documented(bodies.RetrieveFutures),
)
async def retrieve_futures(
    body: Annotated[bodies.RetrieveFutures, Depends(json_body(bodies.RetrieveFutures))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    session_id = body.target.sampling_session_id
    await access.owned_sampling_session(services, identity, session_id)
    # A client can only let go of what its own sampling session made.
    done = [each for each in body.retrieved_request_ids if each.startswith(f"{session_id}:")]
    if done:
        await services.store.futures.acknowledge(done)
    hold_s = services.settings.poll_hold_s
    if body.timeout is not None:
        hold_s = min(max(body.timeout, 0.0), hold_s)
    async with held(services, identity):
        completions = await services.hub.wait_completions(
            session_id, body.target.cloned_sampler_id, body.prev_cursor, hold_s
        )
    cursor = max((each.cursor for each in completions), default=body.prev_cursor)
    return {"completions": [_completion(each) for each in completions], "cursor": cursor}


def _completion(completion: Completion) -> dict[str, Any]:
    is_done = completion.state is FutureState.DONE
    return {
        "state": "finished" if is_done else "failed",
        "request_id": completion.request_id,
    }
