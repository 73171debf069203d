"""Probes for whoever supervises the process or sends it clients; they say nothing to others.

What exactly is missing stands at the port for metrics. Neither asks the store anything, so probing
them costs nothing, however often it is done.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from cyclora_server.services import ServicesDep

router = APIRouter(prefix="/healthz", tags=["service"])


@router.get("/live", summary="Does this process's loop go on")
async def live(services: ServicesDep) -> JSONResponse:
    return _answer(services.health.not_alive())


@router.get("/ready", summary="Can this process take requests now")
async def ready(services: ServicesDep) -> JSONResponse:
    return _answer(services.health.not_ready())


def _answer(failing: Sequence[str]) -> JSONResponse:
    if failing:
        return JSONResponse({"status": "unavailable"}, 503)
    return JSONResponse({"status": "ok"})
