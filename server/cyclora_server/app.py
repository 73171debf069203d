"""The application: routes, boundary and the futures hub, put together from given parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

import cyclora_core
from cyclora_core.clock import Clock
from cyclora_core.disk import free_bytes
from cyclora_core.health import Health
from cyclora_server import problems
from cyclora_server.background import Background
from cyclora_server.boundary import Boundary
from cyclora_server.capacity import Capacity
from cyclora_server.futures import FuturesHub
from cyclora_server.inference.tokenizer import Tokenizers
from cyclora_server.intake import BodyMemory
from cyclora_server.key_watch import KeyWatch
from cyclora_server.metrics import ServerMetrics
from cyclora_server.ports import StoragePort, StorePort
from cyclora_server.routes import (
    adapters,
    admin,
    audit,
    billing,
    checkpoints,
    copies,
    credentials,
    custom_losses,
    downloads,
    futures,
    health,
    inference,
    quotas,
    runs,
    sampling,
    service,
    sessions,
    tokenizers,
    traces,
    training,
    usage,
    weights,
)
from cyclora_server.services import Services
from cyclora_server.settings import Settings
from cyclora_server.sweep import Sweeper

_DESCRIPTION = """
Trains and samples LoRA adapters of shared base models through the Tinker API.

Most POST routes answer at once with a promise, `{"request_id": ...}`, which `retrieve_future`
redeems. Requests of one model carry a `seq_id` and run in its order, whatever order they arrive in.
A request sent again finds the promise of the first time.

Under `/v1` (and `/oai/api/v1`) base models and checkpoints answer OpenAI's clients.

Send the API key, or a token that was exchanged for it, in the `X-API-Key` header, or as a bearer
token.
"""

_TAGS = [
    {"name": "service", "description": "Health, feature flags, base models."},
    {"name": "sessions", "description": "One per connected client process."},
    {"name": "training", "description": "Models, passes and optimizer steps."},
    {"name": "weights", "description": "Checkpoints: saved and loaded."},
    {"name": "sampling", "description": "Sampling sessions and samples."},
    {"name": "inference", "description": "For OpenAI's clients: chat and completions."},
    {"name": "futures", "description": "Redeeming promises."},
    {"name": "training runs", "description": "What a tenant has trained."},
    {"name": "checkpoints", "description": "Listed, kept, published and deleted."},
    {"name": "downloads", "description": "Files of checkpoints, by signed URLs."},
    {"name": "tokenizers", "description": "Files for clients without network access."},
    {"name": "billing", "description": "What was used, as it was metered."},
    {
        "name": "administration",
        "description": "`/admin` needs an administrator's API key; the audit log does not.",
    },
]


def create_app(settings: Settings, store: StorePort, storage: StoragePort, clock: Clock) -> FastAPI:
    """Build the application; it opens and closes nothing that it was given."""
    metrics = ServerMetrics(settings.max_metric_tenants)
    condition = Health(clock, metrics.instruments)
    hub = FuturesHub(store.futures, metrics.woken)
    folder = Path(settings.storage_url)
    background = Background()
    key_watch = KeyWatch(store.api_keys, clock)
    capacity = Capacity(settings, store.memory, lambda: free_bytes(folder), clock)
    metrics.watch(hub, capacity)
    condition.ready_if("store", lambda: capacity.is_fresh)
    condition.ready_if("announcements", lambda: hub.is_subscribed)
    condition.ready_if("open", lambda: not hub.is_closing)
    services = Services(
        settings,
        store,
        storage,
        clock,
        hub,
        capacity,
        Tokenizers(storage),
        background,
        BodyMemory(settings.max_bodies_bytes),
        key_watch,
        metrics,
        condition,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None, None]:
        await capacity.measure()  # before the first request could be let in unmeasured
        tasks = [
            asyncio.create_task(hub.run(), name="futures hub"),
            asyncio.create_task(key_watch.run(), name="key watch"),
            asyncio.create_task(capacity.run(), name="capacity"),
            asyncio.create_task(Sweeper(services).run(), name="sweeper"),
            asyncio.create_task(condition.keep_beating(), name="heartbeat"),
        ]
        condition.beat()
        condition.is_serving = True
        try:
            yield
        finally:
            condition.is_serving = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await background.finish(settings.shutdown_grace_s)

    # The page's scripts come from here too: it must work where nothing else can be reached.
    app = FastAPIOffline(
        title="cyclora",
        version=cyclora_core.__version__,
        summary="A LoRA training server that speaks the Tinker API.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.services = services
    for router in (
        health.router,
        service.public_router,
        service.router,
        credentials.router,
        sessions.router,
        traces.router,
        traces.public_router,
        training.router,
        custom_losses.router,
        weights.router,
        sampling.router,
        futures.router,
        runs.router,
        checkpoints.router,
        copies.router,
        adapters.router,
        downloads.router,
        downloads.public_router,
        tokenizers.router,
        audit.router,
        billing.router,
        quotas.router,
        usage.router,
        *admin.routers,
        *inference.routers,
    ):
        app.include_router(router)
    problems.install(app)
    app.add_middleware(Boundary, clock=clock, metrics=metrics)
    return app
