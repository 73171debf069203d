from __future__ import annotations

import re

import httpx
import pytest
from structlog.testing import capture_logs
from tinker import types
from tinker.types.client_config_response import ClientConfigResponse
from tinker.types.client_dynamic_config_response import ClientDynamicConfigResponse

from cyclora_core.clock import ManualClock
from cyclora_server.app import create_app
from cyclora_server.routes.service import feature_flags
from cyclora_server.settings import Settings
from server.doubles.builders import BASE
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble


async def test_the_server_is_up_for_anybody(client: httpx.AsyncClient) -> None:
    del client.headers["X-API-Key"]

    assert (await client.get("/api/v1/healthz")).json() == {"status": "ok"}


async def test_the_sdk_understands_the_feature_flags(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/client/config", json={"sdk_version": "0.38.0"})

    config = ClientConfigResponse.model_validate(answer.json())
    assert config.parallel_fwdbwd_chunks
    assert config.sample_use_retrieve_futures
    assert config.sample_join_sampling_session
    assert config.custom_loss_server_side
    assert not config.pjwt_auth_enabled


@pytest.mark.parametrize("token_auth", [True, False])
def test_exchanging_keys_for_tokens_is_a_setting(token_auth: bool) -> None:
    flags = feature_flags(Settings(token_auth=token_auth))

    assert flags["pjwt_auth_enabled"] is token_auth


@pytest.mark.parametrize("compress", [True, False])
def test_compression_is_a_setting(compress: bool) -> None:
    flags = feature_flags(Settings(proto_compress=compress))

    assert flags["proto_compress_fwdbwd"] is compress


async def test_the_sdk_understands_the_dynamic_flags(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/client/dynamic_config", json={})

    config = ClientDynamicConfigResponse.model_validate(answer.json())
    assert config.refresh_interval_sec == 300
    assert config.sample_cancel_enabled


async def test_capabilities_are_what_the_workers_serve(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/get_server_capabilities")

    response = types.GetServerCapabilitiesResponse.model_validate(answer.json())
    [model] = response.supported_models
    assert model.model_name == BASE.name
    assert model.max_context_length == BASE.max_context_length


async def test_telemetry_is_accepted_and_leaves_no_trace(client: httpx.AsyncClient) -> None:
    """Events of failed futures hold the request's headers, API key included."""
    with capture_logs() as logs:
        answer = await client.post("/api/v1/telemetry", json={"events": ["tml-secret"]})

    assert answer.json() == {"status": "accepted"}
    assert "tml-secret" not in str(logs)


def test_the_interactive_documentation_has_a_text_for_every_tag(
    settings: Settings, store: StoreDouble, storage: StorageDouble, clock: ManualClock
) -> None:
    openapi = create_app(settings, store, storage, clock).openapi()

    described = {tag["name"] for tag in openapi["tags"]}
    used = {
        tag
        for item in openapi["paths"].values()
        for route in item.values()
        for tag in route["tags"]
    }
    assert used == described


async def test_the_api_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")

    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert page.status_code == 200
    assert len(sources) >= 2
    for source in sources:
        assert source.startswith("/")
        assert (await client.get(source)).status_code == 200
