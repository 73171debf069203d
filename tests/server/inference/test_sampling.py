"""Waiting for samples, and giving up."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect

import cyclora_server.inference.sampling as sampling
from cyclora_core.errors import Unauthorized, Unavailable
from cyclora_server.auth import Identity
from cyclora_server.inference import models
from cyclora_server.inference.prompts import Prompt
from cyclora_server.inference.requests import CompletionRequest
from cyclora_server.inference.sampling import Order, Samples
from cyclora_server.services import Services
from server.doubles.builders import KEY, TENANT
from server.doubles.store import StoreDouble
from server.inference.builders import CHAT, tokens_of
from server.inference.conftest import Submitted


class Client:
    """Whether the other end of a request is still there."""

    def __init__(self, *, is_gone: bool) -> None:
        self._is_gone = is_gone

    async def is_disconnected(self) -> bool:
        return self._is_gone


async def submit(services: Services, store: StoreDouble, *texts: str) -> Samples:
    identity = Identity(TENANT, store.api_keys.keys[KEY])
    source = await models.find(services, identity, CHAT.name)
    prompts = [Prompt(tokens_of(text), text) for text in texts]
    request = CompletionRequest(model=CHAT.name, prompt=list(texts), max_tokens=4)
    return await Samples.submit(services, identity, source, prompts, Order(request, 4))


@pytest.fixture
def services(app: FastAPI, monkeypatch: pytest.MonkeyPatch, client: httpx.AsyncClient) -> Services:
    assert client
    monkeypatch.setattr(sampling, "_LOOK_INTERVAL_S", 0.0)
    return app.state.services


async def test_nobody_waits_for_a_client_that_has_left(
    services: Services, store: StoreDouble, submitted: Submitted
) -> None:
    samples = await submit(services, store, "One", "Two")
    gone: Any = Client(is_gone=True)

    with pytest.raises(ClientDisconnect):
        await samples.results(gone)
    await services.background.finish(timeout_s=5)

    assert store.futures.acknowledged == [each.request_id for each in submitted.all]


async def impatient(services: Services, store: StoreDouble) -> Samples:
    settings = services.settings.model_copy(update={"inference_timeout_s": 0.0})
    return await submit(dataclasses.replace(services, settings=settings), store, "One")


async def test_a_wait_ends_in_time(services: Services, store: StoreDouble) -> None:
    samples = await impatient(services, store)
    there: Any = Client(is_gone=False)

    with pytest.raises(Unavailable, match="no answer within 0 s"):
        await samples.results(there)


async def test_a_stream_ends_in_time(services: Services, store: StoreDouble) -> None:
    samples = await impatient(services, store)

    with pytest.raises(Unavailable, match="no answer within 0 s"):
        await anext(samples.news())


async def test_silence_is_news_of_nothing(
    services: Services, store: StoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which a stream's reader, and whoever stands in between, knows that it lives."""
    monkeypatch.setattr(sampling, "_QUIET_S", 0.0)
    samples = await submit(services, store, "One")
    news = samples.news()

    first = await anext(news)
    await news.aclose()

    assert (list(first.tokens), first.result) == ([], None)


@pytest.mark.parametrize("how", ["whole", "streamed"])
async def test_a_reply_ends_with_its_key_and_lets_its_samples_go(
    services: Services, store: StoreDouble, submitted: Submitted, how: str
) -> None:
    samples = await submit(services, store, "One")
    there: Any = Client(is_gone=False)

    async def reply() -> None:
        if how == "whole":
            await samples.results(there)
        else:
            async with aclosing(samples.news()) as news:
                await anext(news)

    task = asyncio.create_task(reply())
    await asyncio.sleep(0)
    await store.api_keys.revoke("key-a", "key-admin")
    with pytest.raises(Unauthorized, match="revoked"):
        async with asyncio.timeout(5):
            await task
    await services.background.finish(timeout_s=5)

    assert store.futures.acknowledged == [each.request_id for each in submitted.all]
