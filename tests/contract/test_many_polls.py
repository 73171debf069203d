"""Thousands of held polls are nobody's delay, and all of them are answered."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time

import httpx
import pytest

from contract.conftest import Running
from faults import http_requests
from faults.http_client import HttpClient

pytestmark = [pytest.mark.contract, pytest.mark.slow]

NUM_POLLS = 1000
NUM_STEPS = 15
ANSWERED_S = 20.0


async def poll(url: str, api_key: str, request_id: str) -> bytes:
    """Poll on a bare connection until there is an answer; returns its body.

    Thousands of connections are more than httpx's pool is made for.
    """
    address = httpx.URL(url)
    content = json.dumps({"request_id": request_id})
    head = (
        f"POST /api/v1/retrieve_future HTTP/1.1\r\nHost: {address.host}\r\n"
        f"X-API-Key: {api_key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(address.host, address.port)
    status, body = b"408", b""
    while status == b"408":
        writer.write((head + content).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        status = answer.split(maxsplit=2)[1]
        (length,) = re.findall(rb"(?i)content-length: (\d+)", answer)
        body = await reader.readexactly(int(length))
    writer.close()
    assert status == b"200", (status, body)
    return body


async def step_s(client: HttpClient, model_id: str, first_seq_id: int) -> float:
    """Seconds of one awaited step, the median of several."""
    seconds: list[float] = []
    for seq_id in range(first_seq_id, first_seq_id + NUM_STEPS):
        began = time.perf_counter()
        data = [http_requests.datum(8, seed=seq_id)]
        (await client.run(http_requests.forward_backward(model_id, seq_id, data))).value()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


async def test_a_thousand_held_polls_delay_nobody_and_are_all_answered(
    up: Running,
) -> None:
    async with HttpClient(up.base_url, up.api_key("busy")) as busy:
        session_id = await busy.open_session()
        creating = http_requests.create_model(session_id)
        model_id: str = (await busy.run(creating)).value()["model_id"]
        waiting = busy.as_tenant(up.api_key("idle"))
        idle_session = await waiting.open_session()
        idle_model: str = (await waiting.run(http_requests.create_model(idle_session))).value()[
            "model_id"
        ]
        await step_s(busy, model_id, 1)
        alone_s = await step_s(busy, model_id, 1 + NUM_STEPS)

        # Held behind its predecessor, which has not been sent.
        held = await waiting.submit(http_requests.optim_step(idle_model, 2, 1e-3))
        idle_key = up.api_key("idle")
        polls = [asyncio.create_task(poll(up.base_url, idle_key, held)) for _ in range(NUM_POLLS)]
        data = [http_requests.datum(8, seed=0)]
        (await busy.run(http_requests.forward(model_id, 1 + 2 * NUM_STEPS, data))).value()
        beside_s = await step_s(busy, model_id, 2 + 2 * NUM_STEPS)

        data = [http_requests.datum(8, seed=1)]
        await waiting.submit(http_requests.forward_backward(idle_model, 1, data))
        async with asyncio.timeout(ANSWERED_S):
            answers = await asyncio.gather(*polls)

    assert len(set(answers)) == 1
    assert beside_s < 2 * alone_s + 0.05
