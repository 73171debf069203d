from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.clock import ManualClock
from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from server.doubles.builders import KEY, manual_clock
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble


@pytest.fixture
def store() -> StoreDouble:
    return StoreDouble()


@pytest.fixture
def storage() -> StorageDouble:
    return StorageDouble()


@pytest.fixture
def clock() -> ManualClock:
    return manual_clock()


@pytest.fixture
def settings() -> Settings:
    return Settings(poll_hold_s=0.0, max_body_bytes=8192, max_decoded_bytes=8192)


@pytest.fixture
def app(
    settings: Settings, store: StoreDouble, storage: StorageDouble, clock: ManualClock
) -> FastAPI:
    return create_app(settings, store, storage, clock)


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client with tenant A's key; no exception may get past the application."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://server",
            headers={"X-API-Key": KEY},
        ) as client,
    ):
        yield client
