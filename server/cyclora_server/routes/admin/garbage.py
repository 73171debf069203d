"""Looking for what takes space in vain, and freeing it; for administrators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from cyclora_core.errors import UserError
from cyclora_server import garbage
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.garbage import Garbage, GarbageKind
from cyclora_server.services import Json, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(prefix="/admin/v1", tags=["administration"], dependencies=needs_key)

MAX_TOLD = 1000


@router.post(
    "/garbage",
    summary="Find what takes space in vain; with `dry_run=false`, free it",
    description="Checkpoints that have expired, records without files, files without a record, and "
    "snapshots of models that have ended; nothing that is in use, and nothing younger than the "
    "grace. With the `digest` of a dry run, nothing else than what that told is freed: if there "
    f"is other garbage by now, nothing is. At most {MAX_TOLD} things are told one by one.",
    openapi_extra=documented(admin_bodies.CollectGarbage),
)
async def collect_garbage(
    body: Annotated[admin_bodies.CollectGarbage, Depends(json_body(admin_bodies.CollectGarbage))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    found = await garbage.look(services, body.grace_s)
    digest = garbage.digest(found)
    if body.digest is not None and body.digest != digest:
        raise UserError("there is other garbage by now; look at it with dry_run, and try again")
    if not body.dry_run:
        by = identity.key.key_id
        found = await garbage.free(services, found, by)
        details = {"num": len(found), "num_bytes": sum(each.num_bytes for each in found)}
        await services.store.audit.add("garbage_collect", details, by)
    return {"is_dry_run": body.dry_run, "digest": digest, **_told(found)}


def _told(found: Sequence[Garbage]) -> dict[str, Any]:
    totals = {
        kind: {
            "num": sum(each.kind is kind for each in found),
            "num_bytes": sum(each.num_bytes for each in found if each.kind is kind),
        }
        for kind in GarbageKind
    }
    rows = [
        {
            "kind": each.kind,
            "name": each.name,
            "tenant_id": each.tenant_id,
            "num_bytes": each.num_bytes,
        }
        for each in found[:MAX_TOLD]
    ]
    return {
        "num": len(found),
        "num_bytes": sum(each.num_bytes for each in found),
        "totals": totals,
        "garbage": rows,
    }
