"""Which project something belongs to: a label within a tenant, made by its use.

A training run is in its session's project, wherever that is moved, and its checkpoints are with it.
Only copies of checkpoints, which no session made, carry a project of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cyclora_core.records import DEFAULT_PROJECT, Session
from cyclora_core.types import ModelRecord
from cyclora_server.services import Services


def of_session(session: Session | None) -> str:
    """The project of a session; of one that is not known, the default."""
    return (session.project_id if session else None) or DEFAULT_PROJECT


async def of_models(services: Services, models: Sequence[ModelRecord]) -> dict[str, str]:
    """The project of each model, by its id."""
    sessions = await services.store.sessions.get_many(_unique(each.session_id for each in models))
    return {
        each.model_id: each.project_id or of_session(sessions.get(each.session_id))
        for each in models
    }


async def of_model_ids(services: Services, model_ids: Iterable[str]) -> dict[str, str]:
    """The project of each model that exists, by its id."""
    return await of_models(services, await services.store.models.get_many(_unique(model_ids)))


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
