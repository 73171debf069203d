"""Requests made up from our own OpenAPI document, sound and unsound: none is an error of ours."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from cyclora_core.accounts import Scope
from cyclora_core.clock import SystemClock
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_server.app import create_app
from cyclora_server.settings import Settings

pytestmark = pytest.mark.slow

MAX_EXAMPLES = 8
"""Per route and mode; together they take well below a minute."""

TIMEOUT_S = 30


@schemathesis.serializer("application/x-tar")
def noise(_context: Any, value: Any) -> bytes:
    """Bodies that are no JSON: whatever was made up, as bytes."""
    return value if isinstance(value, bytes) else str(value).encode()


class Served:
    """The application over a real store, in a thread of its own with a loop of its own."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.base_url = ""
        self._admin_key = ""
        self._tenant_id = ""
        self._ready = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(redis_url, folder)))

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S)

    def stop(self) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join()

    def new_key(self) -> str:
        """A key for one route: one of them ends the key that it is asked with."""
        answer = requests.post(
            f"{self.base_url}/admin/v1/keys",
            json={"tenant_id": self._tenant_id, "scopes": ["admin"]},
            headers={"X-API-Key": self._admin_key},
            timeout=TIMEOUT_S,
        )
        return answer.json()["api_key"]

    async def _run(self, redis_url: str, folder: Path) -> None:
        clock = SystemClock()
        store = await Store.open(redis_url, f"fuzz-{uuid.uuid4().hex[:12]}", clock)
        tenant = await store.tenants.create("fuzz")
        self._tenant_id = tenant.tenant_id
        self._admin_key, _ = await store.api_keys.create(tenant.tenant_id, "fuzz", frozenset(Scope))
        own = Settings(poll_hold_s=0.0, min_free_disk_bytes=0, storage_url=str(folder))
        app = create_app(own, store, Storage(folder), clock)
        config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}"
        self._ready.set()
        await serving
        await store.close()


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(redis_url, tmp_path_factory.mktemp("storage"))
    running.start()
    yield running
    running.stop()


def test_no_request_is_answered_with_an_error_of_ours(served: Served) -> None:
    document = requests.get(f"{served.base_url}/openapi.json", timeout=TIMEOUT_S).json()
    schema: Any = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.base_url)
    failures: list[str] = []
    num_routes = 0
    for operation in (each.ok() for each in schema.get_all_operations()):
        num_routes += 1
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            failures += faults(operation, mode, served)

    assert num_routes > 20
    assert failures == []


def faults(operation: Any, mode: GenerationMode, served: Served) -> list[str]:
    """Answers that are a fault of ours, or none at all, to made-up requests of one route."""
    found: list[str] = []
    headers = {"X-API-Key": served.new_key()}
    ends_its_key = operation.label == "DELETE /api/v1/auth/apikey/me"

    @settings(
        max_examples=MAX_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call(headers=headers, timeout=TIMEOUT_S)
        # Polls are answered 429 in place of 500; nothing is short here.
        is_fault = answer.status_code >= 500 or answer.status_code == 429
        # A request that gets no further than the key shows nothing.
        if is_fault or (answer.status_code == 401 and not ends_its_key):
            found.append(f"{answer.status_code} {operation.label}: {case.body!r:.200}")

    with suppress(Unsatisfiable):  # a route without parameters cannot be asked wrongly
        ask()
    return found
