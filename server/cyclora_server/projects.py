"""Which project something belongs to: a label within a tenant, made by its use.

A training run is in its session's project, wherever that is moved, and its checkpoints are with it.
Only copies of checkpoints, which no session made, carry a project of their own. An API key may be
bound to a project: it works there, and nothing else of its tenant exists for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass

from cyclora_core.errors import Forbidden
from cyclora_core.records import DEFAULT_PROJECT, Checkpoint, Session
from cyclora_core.types import ModelRecord
from cyclora_server.auth import Identity
from cyclora_server.services import Services

_AT_ONCE = 1000


def of_session(session: Session | None) -> str:
    """The project of a session; of one that is not known, the default."""
    return (session.project_id if session else None) or DEFAULT_PROJECT


def is_open(identity: Identity, project_id: str) -> bool:
    """Whether a key may see what is in a project of its tenant."""
    return identity.key.project_id in (None, project_id)


def chosen(identity: Identity, project_id: str | None) -> str | None:
    """The project that a client named, or the one that its key is bound to.

    Raises:
        Forbidden: the key is bound to another project.
    """
    bound = identity.key.project_id
    if project_id is None:
        return bound
    if not is_open(identity, project_id):
        raise Forbidden(
            f"project_id {project_id[:140]!r} is not open to this API key, which is for project "
            f"{bound!r}"
        )
    return project_id


def once(identity: Identity, idempotency_key: str) -> str:
    """What a repeated request of this key is recognised by, within its tenant.

    A key that is bound must not find what one of another project made.
    """
    bound = identity.key.project_id
    return idempotency_key if bound is None else f"{bound} {idempotency_key}"


async def sessions(
    services: Services, tenant_id: str, project_id: str
) -> AsyncGenerator[Session, None]:
    """The sessions of a project, newest first; looks at all of the tenant's."""
    offset = 0
    while page := await services.store.sessions.list(tenant_id, offset, _AT_ONCE):
        for session in page:
            if of_session(session) == project_id:
                yield session
        offset += _AT_ONCE


async def checkpoints(
    services: Services, tenant_id: str, project_id: str, *, with_external: bool
) -> list[Checkpoint]:
    """The checkpoints of a project, newest first; looks at all of the tenant's."""
    found: dict[str, Checkpoint] = {}
    offset, total = 0, 1
    while offset < total:
        page, total = await services.store.checkpoints.list(
            tenant_id, offset, _AT_ONCE, with_external=with_external
        )
        # By path: one that was saved in between moves the others into the next page.
        found |= {each.path: each for each in page}
        offset += _AT_ONCE
    project_of = await of_model_ids(services, (each.model_id for each in found.values()))
    return [each for each in found.values() if project_of.get(each.model_id) == project_id]


@dataclass(frozen=True, slots=True)
class ProjectSummary:
    """What is in one project of a tenant."""

    project_id: str
    num_sessions: int
    num_training_runs: int
    num_checkpoints: int
    stored_bytes: int
    """Of these checkpoints."""


async def summaries(services: Services, tenant_id: str) -> list[ProjectSummary]:
    """All projects of a tenant, by name; looks at everything that it has."""
    store = services.store
    num_sessions: Counter[str] = Counter()
    num_runs: Counter[str] = Counter()
    num_checkpoints: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    offset = 0
    while page := await store.sessions.list(tenant_id, offset, _AT_ONCE):
        num_sessions.update(of_session(session) for session in page)
        offset += _AT_ONCE
    offset, total = 0, 1
    while offset < total:
        models, total = await store.runs.list(tenant_id, offset, _AT_ONCE)
        project_of = await of_models(services, models)
        num_runs.update(project_of.values())
        for found in await store.checkpoints.of_models(list(project_of)):
            for each in found:
                num_checkpoints[project_of[each.model_id]] += 1
                num_bytes[project_of[each.model_id]] += each.num_bytes
        offset += _AT_ONCE
    return [
        ProjectSummary(
            each, num_sessions[each], num_runs[each], num_checkpoints[each], num_bytes[each]
        )
        for each in sorted({*num_sessions, *num_runs})
    ]


async def of_models(services: Services, models: Sequence[ModelRecord]) -> dict[str, str]:
    """The project of each model, by its id."""
    sessions = await services.store.sessions.get_many(unique(each.session_id for each in models))
    return {
        each.model_id: each.project_id or of_session(sessions.get(each.session_id))
        for each in models
    }


async def of_model_ids(services: Services, model_ids: Iterable[str]) -> dict[str, str]:
    """The project of each model that exists, by its id."""
    return await of_models(services, await services.store.models.get_many(unique(model_ids)))


def unique(values: Iterable[str]) -> list[str]:
    """Each value once, in the order of first sight."""
    return list(dict.fromkeys(values))
