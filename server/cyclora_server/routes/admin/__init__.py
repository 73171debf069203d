"""Administration over REST: all of it below ``/admin/v1``, for keys with the scope ``admin``."""

from __future__ import annotations

from cyclora_server.routes.admin import (
    audit,
    checkpoints,
    cycles,
    fleet,
    garbage,
    keys,
    models,
    queue,
    quotas,
    runs,
    settings,
    tenants,
    usage,
)

routers = (
    tenants.router,
    keys.router,
    fleet.router,
    models.router,
    usage.router,
    queue.router,
    cycles.router,
    audit.router,
    quotas.router,
    runs.router,
    checkpoints.router,
    garbage.router,
    settings.router,
)
