"""Errors as HTTP answers; the only file that knows status codes.

The codes are chosen by what the SDK does with them: it retries 408, 409, 429 and every 5xx for
minutes, so none of these may answer a request that can never succeed.

::

    UserError            400  permanent; the SDK raises at once
      Unauthorized       401  the SDK raises AuthenticationError
        InvalidToken     401  with a header that has the SDK get a new token and repeat, once
      Forbidden          403  permanent
      NotFound           404  permanent; also for objects of other tenants, which must look alike
      Gone               410  a lost promise: samples are submitted anew; ends a heartbeat quietly
      PayloadTooLarge    413  permanent
      InvalidBody        422  permanent; a field is missing or of the wrong type
    OverBudget           402  the client pauses: it comes back every 5 s, for up to an hour
    Overloaded           429  the client backs off and comes back, for up to five minutes
    TooSlow              408  its body came too slowly; the client sends it again
    Unavailable          503  the client tries again for up to five minutes
    anything else        500  ours: logged under an error_id, which is all that the tenant sees

Still waiting is no error: a held poll that ran out is answered 408 with the queue state, which is
the one code after which the SDK polls again silently. 409 is never used: the SDK retries it.
Every answer has a body and a Content-Length, because the SDK takes a 400 without one for a
proxy's glitch and sends the request again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cyclora_core.errors import (
    CycloraError,
    Forbidden,
    Gone,
    NotFound,
    OverBudget,
    Overloaded,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
    UserError,
)
from cyclora_core.types import QueueState
from cyclora_server.intake import TooSlow

_log = structlog.get_logger()

_MAX_DETAIL_CHARS = 2000
_MAX_SHOWN_CHARS = 24
_SECRET = re.compile(r"tml-[\w-]{12,}|eyJ[\w-]{8,}\.[\w-]*(\.[\w-]*)?")
"""API keys, and tokens that stand for them."""
_CAPITAL = re.compile("(?<!^)(?=[A-Z])")


class InvalidBody(UserError):
    """A field is missing or is of the wrong type."""


class InvalidToken(Unauthorized):
    """A token that was sent instead of an API key is not, or no longer, good for anything."""


# From the most special to the most general: the first that fits decides.
_STATUS: tuple[tuple[type[CycloraError], int], ...] = (
    (Unauthorized, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Gone, 410),
    (PayloadTooLarge, 413),
    (InvalidBody, 422),
    (UserError, 400),
    (OverBudget, 402),
    (Overloaded, 429),
    (TooSlow, 408),
    (Unavailable, 503),
)

_HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as HTTP says it, before it gets the form that a protocol wants."""

    status: int
    detail: str
    is_invalid_token: bool = False

    @property
    def headers(self) -> dict[str, str]:
        headers = dict(_HEADERS.get(self.status, {}))
        if self.is_invalid_token:
            headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
        return headers


def problem_of(error: Exception) -> Problem:
    """What to tell of any exception; logs those that are our fault."""
    if isinstance(error, HTTPException):
        return Problem(error.status_code, _shortened(str(error.detail)))
    if isinstance(error, RequestValidationError):
        return Problem(422, _shortened(describe_violations(error.errors())))
    for error_type, status in _STATUS:
        if isinstance(error, error_type):
            return Problem(status, _shortened(str(error)), isinstance(error, InvalidToken))
    return Problem(500, report_fault(error))


def reason_of(error: Exception) -> str:
    """The kind of an error, for counting; as few as there are classes."""
    if isinstance(error, RequestValidationError):
        error = InvalidBody()
    if isinstance(error, HTTPException):
        return f"http_{error.status_code}"
    if not isinstance(error, CycloraError):
        return "internal_error"
    return _CAPITAL.sub("_", type(error).__name__).lower()


def note(request: Request, error: Exception) -> None:
    """Have a request counted under what went wrong first."""
    if not hasattr(request.state, "refusal"):
        request.state.refusal = reason_of(error)


def answer(error: Exception) -> JSONResponse:
    """The HTTP answer to any exception."""
    problem = problem_of(error)
    return JSONResponse({"detail": problem.detail}, problem.status, problem.headers)


def report_fault(error: Exception) -> str:
    """Log a fault of ours; returns the text that a tenant may see."""
    error_id = secrets.token_hex(8)
    _log.exception("request failed", error_id=error_id, exc_info=error)
    return f"internal error; the server's log has more under error_id {error_id}"


def try_again(request_id: str, queue_state: QueueState, reason: str | None) -> JSONResponse:
    """The answer to a poll whose future is still pending after being held."""
    body: dict[str, Any] = {
        "type": "try_again",
        "request_id": request_id,
        "queue_state": queue_state,
    }
    if reason:
        body["queue_state_reason"] = reason
    return JSONResponse(body, 408)


def describe_violations(violations: Any) -> str:
    """Pydantic's findings as one line: where, what, and the value if it is short."""
    lines: list[str] = []
    for violation in violations:
        where = ".".join(str(part) for part in violation["loc"]) or "body"
        line = f"{where}: {violation['msg'][:1].lower()}{violation['msg'][1:]}"
        value = violation.get("input")
        if isinstance(value, str) and len(value) > _MAX_SHOWN_CHARS:
            line += f", got {len(value)} characters"  # which may be what somebody wrote
        elif isinstance(value, str | int | float | bool):
            line += f", got {str(value)[:_MAX_SHOWN_CHARS]!r}"
        lines.append(line)
    return "; ".join(lines)


def install(app: FastAPI) -> None:
    """Route every expected error through ``answer``; the boundary catches the others."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        note(request, error)
        return answer(error)

    for expected in (CycloraError, RequestValidationError, HTTPException):
        app.add_exception_handler(expected, handle)


def masked(message: str) -> str:
    """A message without keys and tokens: answers are kept, shown and pasted by clients."""
    return _SECRET.sub("(a secret)", message)


def _shortened(detail: str) -> str:
    return masked(detail)[:_MAX_DETAIL_CHARS]
