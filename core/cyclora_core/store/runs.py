"""Training runs as users list them: all of a tenant's, one project's, or published ones too."""

from __future__ import annotations

from collections.abc import Sequence

from cyclora_core.records import DEFAULT_PROJECT
from cyclora_core.store.checkpoints import Checkpoints
from cyclora_core.store.connection import Connection, text
from cyclora_core.store.models import Models
from cyclora_core.store.sessions import Sessions
from cyclora_core.types import ModelRecord

Page = tuple[list[ModelRecord], int]
"""Some runs, newest first, and the number of all that there are."""


class Runs:
    """Read side of training runs.

    A tenant's own list reads one page; the others look at every run that they choose from.
    """

    def __init__(
        self, connection: Connection, models: Models, sessions: Sessions, checkpoints: Checkpoints
    ) -> None:
        self._redis = connection.client
        self._keys = connection.keys
        self._models = models
        self._sessions = sessions
        self._checkpoints = checkpoints

    async def list(self, tenant_id: str, offset: int, limit: int) -> Page:
        """A tenant's own."""
        return await self._models.list(tenant_id, offset, limit)

    async def list_of_project(
        self, tenant_id: str, project_id: str, offset: int, limit: int
    ) -> Page:
        """A tenant's own that are in one project: that of their session, or a copy's own."""
        rows = await self._redis.zrevrange(self._keys.models_of(tenant_id), 0, -1)
        model_ids = [row.decode() for row in rows]
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in model_ids:
                pipe.hmget(self._keys.model(model_id), "session_id", "project_id")
            fields = [[text(value) for value in values] for values in await pipe.execute()]
        inherited = {session_id for session_id, own_project_id in fields if not own_project_id}
        sessions = await self._sessions.get_many(sorted(inherited))
        found: list[str] = []
        for model_id, (session_id, own_project_id) in zip(model_ids, fields, strict=True):
            session = sessions.get(session_id)
            session_project_id = session.project_id if session else None
            if (own_project_id or session_project_id or DEFAULT_PROJECT) == project_id:
                found.append(model_id)
        return await self._page(found, offset, limit)

    async def list_accessible(self, tenant_id: str, offset: int, limit: int) -> Page:
        """A tenant's own, and those of others that have a published checkpoint."""
        rows = await self._redis.zrange(self._keys.models_of(tenant_id), 0, -1, withscores=True)
        created_at = {row.decode(): int(score) for row, score in rows}
        published = await self._checkpoints.published()
        others = {each.model_id for each in published} - created_at.keys()
        for model in await self._models.get_many(sorted(others)):
            created_at[model.model_id] = model.created_at_ms
        # As Redis orders equal scores: a page must not depend on which scope was asked for.
        newest_first = sorted(created_at, key=lambda each: (created_at[each], each), reverse=True)
        return await self._page(newest_first, offset, limit)

    async def _page(self, model_ids: Sequence[str], offset: int, limit: int) -> Page:
        models = await self._models.get_many(model_ids[offset : offset + limit])
        return models, len(model_ids)
