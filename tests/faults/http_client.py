"""A client that sends again whatever has no definite answer, as SDKs do, only sooner."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from faults import http_requests
from faults.http_requests import Request

DEADLINE_S = 60.0
"""Without an answer for so long, a request counts as lost."""

_POLL_TIMEOUT_S = 45.0
_MAX_PAUSE_S = 0.4
_RETRIED = frozenset({408, 409, 429})


class Refused(Exception):
    """A definite 4xx."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status


class Lost(Exception):
    """No definite answer before the deadline."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a future ended in: a result, or an error with its category."""

    result: Mapping[str, Any] | None
    error: str = ""
    category: str = ""

    @property
    def is_done(self) -> bool:
        return self.result is not None

    def value(self) -> Mapping[str, Any]:
        """The result of what must not have failed."""
        if self.result is None:
            raise AssertionError(f"failed ({self.category}): {self.error}")
        return self.result


class HttpClient:
    """One tenant, on a connection pool that others may share."""

    def __init__(
        self, base_url: str, api_key: str, shared: httpx.AsyncClient | None = None
    ) -> None:
        self._api_key = api_key
        self._http = shared or httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(_POLL_TIMEOUT_S, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    def as_tenant(self, api_key: str) -> HttpClient:
        """Another tenant on the same connections; only this one closes them."""
        return HttpClient(str(self._http.base_url), api_key, self._http)

    async def post(self, request: Request) -> dict[str, Any]:
        """The answer of a request, sent until there is a definite one.

        Raises:
            Refused: it is a 4xx.
            Lost: there was none in time.
        """
        return await self._until_definite("POST", f"/api/v1/{request.route}", request)

    async def delete(self, path: str) -> None:
        """Delete something under ``/api/v1/``; one that is gone already was deleted by a try."""
        try:
            await self._until_definite("DELETE", f"/api/v1/{path}", None)
        except Refused as refusal:
            if refusal.status != 404:
                raise

    async def submit(self, request: Request) -> str:
        """The request_id of a numbered request's promise."""
        return (await self.post(request))["request_id"]

    async def outcome(self, request_id: str) -> Outcome:
        """What a future ended in.

        Raises:
            Refused: there is no such future.
            Lost: it was pending until the deadline.
        """
        answer = await self.post(Request("retrieve_future", {"request_id": request_id}))
        if "error" in answer:
            return Outcome(None, answer["error"], answer["category"])
        return Outcome(answer)

    async def open_session(self) -> str:
        request = http_requests.create_session(uuid.uuid4().hex)
        return (await self.post(request))["session_id"]

    async def run(self, request: Request) -> Outcome:
        """Submit a request and wait for what becomes of it."""
        return await self.outcome(await self.submit(request))

    async def _until_definite(
        self, method: str, path: str, request: Request | None
    ) -> dict[str, Any]:
        deadline_s = time.monotonic() + DEADLINE_S
        pause_s = 0.05
        while True:
            last: object
            try:
                response = await self._once(method, path, request)
            except httpx.TransportError as error:
                last = repr(error)
            else:
                if response.status_code < 400:
                    return response.json() if response.content else {}
                is_indefinite = response.status_code in _RETRIED or response.status_code >= 500
                last = f"{response.status_code}: {response.text[:300]}"
                if not is_indefinite:
                    raise Refused(response.status_code, response.text)
            if time.monotonic() > deadline_s:
                raise Lost(f"{method} {path} {_name(request)}: {last}")
            await asyncio.sleep(pause_s)  # as the SDK does; the answer of a poll was held already
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _once(self, method: str, path: str, request: Request | None) -> httpx.Response:
        headers = {"X-API-Key": self._api_key}
        if request is None:
            return await self._http.request(method, path, headers=headers)
        headers |= request.headers
        return await self._http.request(method, path, json=dict(request.body), headers=headers)


def _name(request: Request | None) -> str:
    if request is None:
        return ""
    names = ("request_id", "model_id", "sampling_session_id", "seq_id")
    return " ".join(f"{name}={request.body[name]}" for name in names if name in request.body)


def without_ids(value: Any, renamed: Mapping[str, str], left_out: Callable[[str], bool]) -> Any:
    """A JSON value in which ids are replaced, to compare what two tenants got.

    ``left_out`` names keys that legitimately differ.
    """
    if isinstance(value, Mapping):
        items: Mapping[str, Any] = value
        return {k: without_ids(v, renamed, left_out) for k, v in items.items() if not left_out(k)}
    if isinstance(value, list):
        rows: list[Any] = value
        return [without_ids(each, renamed, left_out) for each in rows]
    if isinstance(value, str):
        for found, name in renamed.items():
            value = value.replace(found, name)
    return value
