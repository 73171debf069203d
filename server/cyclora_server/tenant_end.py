"""What is left to do when a tenant was deleted: its keys, sessions and checkpoints go.

Whoever deletes a tenant begins with it at once; the sweep of any server goes on until nothing is
left, since what the tenant had sent before still runs and may save another checkpoint. Doing it
twice is doing it once. The books stay: usage and the audit log.
"""

from __future__ import annotations

from cyclora_core.errors import CycloraError
from cyclora_core.ids import CheckpointPath
from cyclora_core.records import Session
from cyclora_server import access, session_end
from cyclora_server.services import Services

_AT_ONCE = 1000
_REASON = "interrupted"
_DETAIL = "its tenant was deleted"


async def live_sessions(services: Services, tenant_id: str) -> list[Session]:
    """Sessions of a tenant that have not ended."""
    store = services.store
    live = await store.sessions.get_many(list(await store.sessions.live()))
    return [each for each in live.values() if each.tenant_id == tenant_id]


async def clean_up(services: Services, tenant_id: str, by: str = "") -> bool:
    """Delete what a deleted tenant has now; true once nothing is left that could make more.

    ``by`` is the key_id of who asked.
    """
    store = services.store
    for holder in await store.api_keys.list(tenant_id):
        if holder.key.revoked_at_ms is None:
            await store.api_keys.revoke(holder.key.key_id, by)
    for session in await live_sessions(services, tenant_id):
        await store.sessions.finish(session.session_id, _REASON, _DETAIL)
        try:
            await session_end.clean_up(services, session.session_id)
        except CycloraError:
            continue  # the sweep of ended sessions tries it again
    # Asked before the checkpoints: a model that still runs may save one after they are listed.
    is_over = await _has_ended(services, tenant_id)
    while True:
        page, _ = await store.checkpoints.list(tenant_id, 0, _AT_ONCE)
        if not page:
            return is_over
        for checkpoint in page:
            path = CheckpointPath.parse(checkpoint.path)
            await access.discard_checkpoint(services, path, by)


async def _has_ended(services: Services, tenant_id: str) -> bool:
    """Whether all that the tenant had sent has run."""
    offset = 0
    while True:
        models, total = await services.store.runs.list(tenant_id, offset, _AT_ONCE)
        if not all(model.is_ended for model in models):
            return False
        offset += _AT_ONCE
        if offset >= total:
            return True
