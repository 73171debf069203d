"""The settings in force, for administrators."""

from __future__ import annotations

from fastapi import APIRouter

from cyclora_core.clock import as_datetime
from cyclora_core.shown import shown
from cyclora_server.auth import needs_key
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/admin/v1", tags=["administration"], dependencies=needs_key)


@router.get(
    "/settings",
    summary="The settings of this server, and those with which schedulers and workers started",
    description="Secrets and passwords in URLs are hidden. Of each name the last start counts, "
    "whether that process still lives or not.",
)
async def get_settings(services: ServicesDep) -> Json:
    processes = [
        {
            "kind": each.kind,
            "name": each.name,
            "started_at": as_datetime(each.started_at_ms).isoformat(),
            "settings": dict(each.settings),
        }
        for each in await services.store.processes.list()
    ]
    return {"server": shown(services.settings.model_dump(mode="json")), "processes": processes}
