"""Thousands of held polls are nobody's delay, and all of them are answered."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import AsyncGenerator

import httpx
import pytest

from contract.conftest import Running
from faults import http_requests
from faults.http_client import HttpClient

pytestmark = [pytest.mark.contract, pytest.mark.slow]

NUM_POLLS = 1000
NUM_STEPS = 15
ANSWERED_S = 20.0


@pytest.fixture
async def idle(up: Running) -> AsyncGenerator[httpx.AsyncClient]:
    """A tenant's connections, as many as it likes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"X-API-Key": up.api_key("idle")}
    timeout = httpx.Timeout(60.0)
    async with httpx.AsyncClient(
        base_url=up.base_url, headers=headers, limits=limits, timeout=timeout, trust_env=False
    ) as client:
        yield client


async def poll(client: httpx.AsyncClient, request_id: str) -> httpx.Response:
    while True:
        body = {"request_id": request_id}
        answer = await client.post("/api/v1/retrieve_future", json=body)
        if answer.status_code != 408:
            return answer


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
    up: Running, idle: httpx.AsyncClient
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
        polls = [asyncio.create_task(poll(idle, held)) for _ in range(NUM_POLLS)]
        data = [http_requests.datum(8, seed=0)]
        (await busy.run(http_requests.forward(model_id, 1 + 2 * NUM_STEPS, data))).value()
        beside_s = await step_s(busy, model_id, 2 + 2 * NUM_STEPS)

        data = [http_requests.datum(8, seed=1)]
        await waiting.submit(http_requests.forward_backward(idle_model, 1, data))
        async with asyncio.timeout(ANSWERED_S):
            answers = await asyncio.gather(*polls)

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert beside_s < 2 * alone_s + 0.05


async def test_a_stranger_who_polls_a_thousand_times_holds_nothing(
    up: Running, idle: httpx.AsyncClient
) -> None:
    guess = f"{uuid.uuid4()}:train:0:1"

    answers = await asyncio.gather(
        *(idle.post("/api/v1/retrieve_future", json={"request_id": guess}) for _ in range(100))
    )

    assert len({(answer.status_code, answer.content) for answer in answers}) == 1
    assert answers[0].status_code in (404, 410)
