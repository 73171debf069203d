"""A tenant without SDK: JSON over one connection, cheap enough to be many on a small machine."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit


class BareTenant:
    """Sends one request after the other.

    Every answer but the 408 of a poll that is to be sent again and the 429 of a full server is
    final; an unexpected one raises.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        address = urlsplit(base_url)
        assert address.hostname is not None
        self._host, self._port, self._api_key = address.hostname, address.port, api_key
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self.num_requests = 0
        self.num_refused = 0
        """Answers that were back-pressure."""

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._writer is not None
        self._writer.close()

    async def post(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The final answer of one request.

        Raises:
            RuntimeError: it is an error.
        """
        while True:
            status, answer = await self._once(route, body)
            if status == 200:
                return answer
            if status == 429:
                self.num_refused += 1
                await asyncio.sleep(0.5)
            elif status != 408 or route != "retrieve_future":
                raise RuntimeError(f"{route}: {status} {answer}")

    async def outcome(self, request_id: str) -> dict[str, Any]:
        """The result behind a promise.

        Raises:
            RuntimeError: it failed.
        """
        answer = await self.post("retrieve_future", {"request_id": request_id})
        if "error" in answer:
            raise RuntimeError(f"{request_id}: {answer}")
        return answer

    async def run(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Submit, and wait for the result."""
        return await self.outcome((await self.post(route, body))["request_id"])

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def _once(self, route: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        assert self._writer is not None
        if self._reader.at_eof():  # a server closes what was idle for some seconds
            self._writer.close()
            await self._connect()
        content = json.dumps(body)
        self._writer.write(
            f"POST /api/v1/{route} HTTP/1.1\r\nHost: {self._host}\r\nX-API-Key: {self._api_key}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
        )
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        self.num_requests += 1
        return int(head[0].split()[1]), json.loads(answer)


def random_datum(rng: random.Random, num_tokens: int) -> dict[str, Any]:
    """One for cross_entropy, as JSON."""
    ids = [rng.randrange(10, 500) for _ in range(num_tokens + 1)]
    weights = {"data": [1.0] * num_tokens, "dtype": "float32", "shape": [num_tokens]}
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": ids[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": ids[1:], "dtype": "int64", "shape": [num_tokens]},
            "weights": weights,
        },
    }
