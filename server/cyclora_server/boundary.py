"""The outermost layer of every request: one log line, and no exception past it."""

from __future__ import annotations

from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cyclora_core.clock import Clock
from cyclora_server import problems

_log = structlog.get_logger()


class Boundary:
    """ASGI middleware around the whole application.

    Plain ASGI rather than Starlette's BaseHTTPMiddleware, which would put a task and a queue
    between the routes and each of thousands of held polls.
    """

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_mono_s = self._clock.mono_s()
        state: dict[str, Any] = scope.setdefault("state", {})
        status = 0
        num_in = num_out = 0

        async def counted_receive() -> Message:
            nonlocal num_in
            message = await receive()
            num_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, num_out
            if message["type"] == "http.response.start":
                status = message["status"]
            num_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        except ClientDisconnect:
            state["is_abandoned"] = True
        except Exception as error:  # noqa: BLE001 - the request boundary
            response = problems.answer(error)
            if status == 0:
                await response(scope, receive, counted_send)
        finally:
            if (held := state.get("held_body")) is not None:
                held.release()
        _log.info(
            "request finished",
            method=scope["method"],
            route=getattr(scope.get("route"), "path", None),
            status=status or None,
            duration_s=round(self._clock.mono_s() - started_mono_s, 4),
            tenant_id=state.get("tenant_id"),
            request_bytes=num_in,
            response_bytes=num_out,
            is_abandoned=state.get("is_abandoned", False),
        )
