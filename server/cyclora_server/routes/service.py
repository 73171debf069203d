"""The service itself: is it up, what may a client expect of it, which base models it serves."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from cyclora_server.auth import needs_key
from cyclora_server.body import documented, json_body, read_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.settings import Settings
from cyclora_server.wire import bodies

public_router = APIRouter(prefix="/api/v1", tags=["service"])
router = APIRouter(prefix="/api/v1", tags=["service"], dependencies=needs_key)

_REFRESH_INTERVAL_S = 300


@public_router.get("/healthz", summary="Is this process up")
async def healthz() -> Json:
    return {"status": "ok"}


@router.post(
    "/client/config", summary="Feature flags", openapi_extra=documented(bodies.ClientConfig)
)
async def client_config(
    _body: Annotated[bodies.ClientConfig, Depends(json_body(bodies.ClientConfig))],
    services: ServicesDep,
) -> Json:
    return feature_flags(services.settings)


def feature_flags(settings: Settings) -> dict[str, bool]:
    """What the SDK does differently for this server; a null would fail its validation.

    ``proto_write_fwdbwd`` to ``create_model_via_load_weights`` matter to SDKs before 0.38 only.
    """
    return {
        "pjwt_auth_enabled": settings.token_auth,
        "parallel_fwdbwd_chunks": True,
        "proto_compress_fwdbwd": settings.proto_compress,
        "proto_write_fwdbwd": True,
        "fwd_via_fwdbwd": True,
        "create_model_via_load_weights": True,
        "sample_use_retrieve_futures": True,
        "sample_join_sampling_session": True,
        "custom_loss_server_side": True,
    }


@router.post(
    "/client/dynamic_config",
    summary="Feature flags that may change while a client runs",
    openapi_extra=documented(bodies.ClientConfig),
)
async def dynamic_config(
    _body: Annotated[bodies.ClientConfig, Depends(json_body(bodies.ClientConfig))],
) -> Json:
    return {"refresh_interval_sec": _REFRESH_INTERVAL_S, "sample_cancel_enabled": True}


@router.get("/get_server_capabilities", summary="Base models that can be trained and sampled")
async def get_server_capabilities(services: ServicesDep) -> Json:
    models: list[dict[str, Any]] = [
        {
            "model_name": base.name,
            "max_context_length": base.max_context_length,
            "trainable": True,
            "sampleable": True,
        }
        for base in await services.store.base_models.list()
    ]
    return {"supported_models": models}


@router.post("/telemetry", summary="Accepts what the SDK reports about itself, and drops it")
async def telemetry(request: Request, services: ServicesDep) -> Json:
    # Never logged or stored: events about failed futures hold the raw request headers, API key
    # included.
    await read_body(request, services)
    return {"status": "accepted"}
