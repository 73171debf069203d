"""Errors in the form that OpenAI's clients read: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from cyclora_core.errors import ErrorCategory, NotFound, ServerError, UserError
from cyclora_core.records import OperationError
from cyclora_server import problems
from cyclora_server.services import Json

# Their clients know one permanent error of a request; the form of its body is part of it.
_STATUS = {410: 400, 422: 400}
_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODES = {
    401: "invalid_api_key",
    402: "insufficient_quota",
    413: "request_too_large",
    429: "rate_limit_exceeded",
}


class RefusedField(UserError):
    """A field of the request holds what cannot be done; ``param`` is its name."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownModel(NotFound):
    """No base model or checkpoint of this name, as far as the tenant may know."""

    param = "model"
    code = "model_not_found"


class FailedSample(ServerError):
    """A sample that failed for no fault of its request; the message is fit for the tenant."""


def failure(error: OperationError) -> Exception:
    """What to raise for a sample whose future has failed."""
    if error.category is ErrorCategory.USER:
        return UserError(error.message)
    return FailedSample(error.message)


def describe(error: Exception) -> tuple[int, Json, dict[str, str]]:
    """Status, body and headers for any exception; logs those that are our fault."""
    if isinstance(error, FailedSample):
        problem = problems.Problem(500, str(error))  # logged where it failed, under its error id
    else:
        problem = problems.problem_of(error)
    status = _STATUS.get(problem.status, problem.status)
    default_type = "server_error" if status >= 500 else "invalid_request_error"
    body = {
        "message": problem.detail,
        "type": _TYPES.get(status, default_type),
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None) or _CODES.get(status),
    }
    return status, {"error": body}, problem.headers


class InferenceRoute(APIRoute):
    """A route that answers its errors, of its dependencies too, in this form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientDisconnect:
                raise
            except Exception as error:  # noqa: BLE001 - the request boundary of this protocol
                problems.note(request, error)
                status, body, headers = describe(error)
                return JSONResponse(body, status, headers)

        return handle_errors
