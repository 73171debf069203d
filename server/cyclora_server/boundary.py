"""The outermost layer of every request: one log line, and no exception past it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cyclora_core.clock import Clock
from cyclora_core.logs import named_in_log
from cyclora_server import problems
from cyclora_server.metrics import METHODS, ServerMetrics

_log = structlog.get_logger()


class Boundary:
    """ASGI middleware around the whole application.

    Plain ASGI rather than Starlette's BaseHTTPMiddleware, which would put a task and a queue
    between the routes and each of thousands of held polls.
    """

    def __init__(self, app: ASGIApp, clock: Clock, metrics: ServerMetrics) -> None:
        self._app = app
        self._clock = clock
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with named_in_log() as names:
            await self._answer(scope, receive, send, names)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, names: Mapping[str, str]
    ) -> None:
        self._metrics.num_in_flight += 1
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
            state.setdefault("refusal", problems.reason_of(error))
            response = problems.answer(error)
            if status == 0:
                await response(scope, receive, counted_send)
        finally:
            if (held := state.get("held_body")) is not None:
                held.release()
            self._metrics.num_in_flight -= 1
        route: str | None = getattr(scope.get("route"), "path", None)
        duration_s = self._clock.mono_s() - started_mono_s
        self._metrics.answered(route, scope["method"], status, duration_s, (num_in, num_out))
        tenant_id = names.get("tenant_id")
        if status >= 400 and "refusal" in state:
            self._metrics.refused(state["refusal"], tenant_id)
        _log.info(
            "request finished",
            method=scope["method"] if scope["method"] in METHODS else "other",
            route=route,
            status=status or None,
            duration_s=round(duration_s, 4),
            **{"tenant_id": None, **names},
            request_bytes=num_in,
            response_bytes=num_out,
            is_abandoned=state.get("is_abandoned", False),
        )
