"""Administration over REST: all of it below ``/admin/v1``, for keys with the scope ``admin``."""

from __future__ import annotations

from cyclora_server.routes.admin import audit, cycles, fleet, keys, queue, quotas, tenants, usage

routers = (
    tenants.router,
    keys.router,
    fleet.router,
    usage.router,
    queue.router,
    cycles.router,
    audit.router,
    quotas.router,
)
