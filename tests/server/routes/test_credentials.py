from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from tinker.lib._jwt_auth import jwt_claims

from cyclora_core.clock import ManualClock
from server.doubles.builders import ADMIN_KEY, KEY, TENANT
from server.doubles.store import StoreDouble


async def exchange(client: httpx.AsyncClient, key: str = KEY) -> str:
    answer = await client.post("/api/v1/auth/token", json={}, headers={"X-API-Key": key})
    return answer.json()["jwt"]


async def test_a_token_says_what_the_sdk_wants_to_know(
    client: httpx.AsyncClient, clock: ManualClock
) -> None:
    claims = jwt_claims(await exchange(client))

    assert claims["sub"] == f"tml:organization_user:{TENANT}"
    assert claims["org_id"] == TENANT
    assert claims["email"] == ""
    assert claims["iat"] == clock.now_ms() // 1000
    assert claims["exp"] - claims["iat"] == 3600


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
async def test_a_token_is_taken_in_place_of_its_key(client: httpx.AsyncClient, header: str) -> None:
    token = await exchange(client)
    del client.headers["X-API-Key"]
    value = f"Bearer {token}" if header == "Authorization" else token

    answer = await client.get("/api/v1/sessions", headers={header: value})

    assert answer.status_code == 200
    assert len(answer.json()["sessions"]) == 1


async def test_a_token_has_the_rights_of_its_key(client: httpx.AsyncClient) -> None:
    for key, status in ((KEY, 403), (ADMIN_KEY, 200)):
        token = await exchange(client, key)
        answer = await client.get("/admin/v1/tenants", headers={"X-API-Key": token})
        assert answer.status_code == status


async def refused(client: httpx.AsyncClient, token: str) -> str:
    answer = await client.get("/api/v1/sessions", headers={"X-API-Key": token})
    assert answer.status_code == 401
    return answer.headers["WWW-Authenticate"]


async def test_an_expired_token_is_refused_so_that_the_sdk_gets_another(
    client: httpx.AsyncClient, clock: ManualClock
) -> None:
    token = await exchange(client)
    clock.advance(3600)

    assert 'error="invalid_token"' in await refused(client, token)


async def test_a_token_ends_with_its_key(client: httpx.AsyncClient, store: StoreDouble) -> None:
    token = await exchange(client)
    await store.api_keys.revoke("key-a", "key-admin")

    assert 'error="invalid_token"' in await refused(client, token)


@pytest.mark.parametrize("token", ["eyJ", "eyJhbGciOiJub25lIn0.e30.", "eyJ" + "x" * 10_000])
async def test_what_only_looks_like_a_token_is_refused(
    client: httpx.AsyncClient, token: str
) -> None:
    assert 'error="invalid_token"' in await refused(client, token)


async def test_a_key_that_is_unknown_is_no_invalid_token(client: httpx.AsyncClient) -> None:
    """The SDK would exchange it again, and again be refused."""
    assert "invalid_token" not in await refused(client, "tml-unknown")


async def test_a_token_cannot_be_exchanged(client: httpx.AsyncClient) -> None:
    token = await exchange(client)

    answer = await client.post("/api/v1/auth/token", json={}, headers={"X-API-Key": token})

    assert answer.status_code == 403


async def test_tokens_are_taken_whatever_clients_are_told(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    assert not app.state.services.settings.token_auth

    answer = await client.get("/api/v1/sessions", headers={"X-API-Key": await exchange(client)})

    assert answer.status_code == 200


async def test_the_cli_learns_whose_key_it_was_given(client: httpx.AsyncClient) -> None:
    value = (await client.get("/api/v1/auth/apikey/me")).json()

    assert isinstance(value["key_id"], int)
    assert value["name"] == "laptop"
    assert value["details"]["org_details"]["name"] == "TENANT-A"


async def test_a_key_can_end_itself_and_no_other(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    assert (await client.delete("/api/v1/auth/apikey/me")).status_code == 200

    assert (await client.get("/api/v1/auth/apikey/me")).status_code == 401
    assert [key.key_id for key in store.api_keys.keys.values() if key.revoked_at_ms] == ["key-a"]
