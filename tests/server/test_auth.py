from __future__ import annotations

import re

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.clock import ManualClock
from server.doubles.builders import ADMIN_KEY, KEY, TENANT
from server.doubles.store import StoreDouble
from server.walk import methods_and_paths

PUBLIC = {
    "/api/v1/healthz",
    "/healthz/live",
    "/healthz/ready",
    "/docs",
    "/docs/oauth2-redirect",
    "/openapi.json",
    # The signature of the URL takes the key's place.
    "/api/v1/archives/{right}/{run}/{kind}/{name}/{revision}",
    "/api/v1/files/{right}/{run}/{kind}/{name}/{revision}/{file}",
    "/api/v1/traces/{session_id}",
}


async def test_every_route_but_the_public_ones_needs_a_key(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    del client.headers["X-API-Key"]
    paths = [(path, method) for path, item in app.openapi()["paths"].items() for method in item]
    assert len(paths) > 40

    refused = {
        path for path, method in paths if (await client.request(method, path)).status_code == 401
    }

    assert {path for path, _ in paths} - refused == PUBLIC & {path for path, _ in paths}


def test_nothing_is_served_beside_the_documented_routes(app: FastAPI) -> None:
    documented = {
        (method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item
    }
    served = {
        (method, re.sub(r":path}", "}", path))
        for method, path in methods_and_paths(app)
        if method != "HEAD" and not path.startswith("/oai/")
    }

    assert {path for _, path in served - documented} <= PUBLIC
    assert documented <= served


@pytest.mark.parametrize("key", ["", "tml-unknown", "x" * 10_000])
async def test_an_unknown_key_is_refused(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.get("/api/v1/sessions", headers={"X-API-Key": key})

    assert answer.status_code == 401
    assert "key" in answer.json()["detail"]


async def test_a_revoked_key_is_refused(client: httpx.AsyncClient, store: StoreDouble) -> None:
    await store.api_keys.revoke("key-a", "key-admin")

    assert (await client.get("/api/v1/sessions")).status_code == 401


async def test_a_bearer_token_is_taken_too(client: httpx.AsyncClient) -> None:
    del client.headers["X-API-Key"]

    answer = await client.get("/api/v1/sessions", headers={"Authorization": f"Bearer {KEY}"})

    assert answer.status_code == 200


async def test_a_body_without_a_key_is_not_even_read(client: httpx.AsyncClient) -> None:
    """Else anybody could make the server hold the largest body it accepts."""
    answer = await client.post(
        "/api/v1/forward_backward", headers={"X-API-Key": ""}, content=b"x" * 100_000
    )

    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/v1/tenants"),
        ("POST", "/admin/v1/tenants"),
        ("GET", "/admin/v1/keys"),
        ("POST", "/admin/v1/keys"),
        ("DELETE", "/admin/v1/keys/key-a"),
        ("GET", "/admin/v1/workers"),
        ("GET", "/admin/v1/base_models"),
    ],
)
async def test_administration_needs_an_administrators_key(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    assert (await client.request(method, path)).status_code == 403

    answer = await client.request(method, path, headers={"X-API-Key": ADMIN_KEY}, json={})

    assert answer.status_code != 403


async def test_an_expired_key_is_refused_and_says_when_it_ended(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.api_keys.change(KEY, expires_at_ms=1000)

    answer = await client.get("/api/v1/sessions")

    assert answer.status_code == 401
    assert "1970-01-01T00:00:01" in answer.json()["detail"]


async def test_a_key_of_a_disabled_tenant_hears_why(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.tenants.change(TENANT, is_enabled=False, disabled_reason="the invoice of May is open")

    answer = await client.get("/api/v1/sessions")

    assert answer.status_code == 403
    assert "the invoice of May is open" in answer.json()["detail"]


async def test_the_use_of_a_key_is_noted_once_a_minute(
    client: httpx.AsyncClient, store: StoreDouble, clock: ManualClock, app: FastAPI
) -> None:
    for last_used_at_ms in (None, clock.now_ms() - 59_999, clock.now_ms() - 60_000):
        store.api_keys.last_used_at_ms = last_used_at_ms
        await client.get("/api/v1/sessions")
    await app.state.services.background.finish(10)

    assert store.api_keys.uses == ["key-a", "key-a"]
