from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from server.doubles.builders import ADMIN_KEY, KEY
from server.doubles.store import StoreDouble

PUBLIC = {
    "/api/v1/healthz",
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
    undocumented = {
        route.path for route in app.routes if isinstance(route, Route) and route.path in PUBLIC
    }

    assert undocumented <= PUBLIC


@pytest.mark.parametrize("key", ["", "tml-unknown", "x" * 10_000])
async def test_an_unknown_key_is_refused(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.get("/api/v1/sessions", headers={"X-API-Key": key})

    assert answer.status_code == 401
    assert "key" in answer.json()["detail"]


async def test_a_revoked_key_is_refused(client: httpx.AsyncClient, store: StoreDouble) -> None:
    await store.tenants.revoke_key("key-a")

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
