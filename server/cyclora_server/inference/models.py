"""The models that inference clients may name: base models and the tenant's own checkpoints."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from cyclora_core import ids
from cyclora_core.errors import NotFound, Unavailable, UserError
from cyclora_core.ids import CheckpointKind
from cyclora_core.records import Checkpoint, SamplingSession
from cyclora_core.types import BaseModelInfo
from cyclora_server import access, projects
from cyclora_server.auth import Identity
from cyclora_server.inference.errors import RefusedField, UnknownModel
from cyclora_server.routes.sampling import weights_to_sample
from cyclora_server.services import Json, Services
from cyclora_server.wire import bodies

_MAX_LISTED = 1000
_NAMESPACE = uuid.UUID("6f0c1a52-8f0e-5d0a-9d58-1f6f5a6b7c3e")
_NO_SESSION = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Source:
    """What a model name stands for, and the sampling session by which it is sampled."""

    name: str
    base: BaseModelInfo
    session: SamplingSession


async def find(services: Services, identity: Identity, name: str) -> Source:
    """What to sample for a model name: a base model, a checkpoint, or ``base model;checkpoint``.

    Raises:
        UnknownModel: there is nothing of this name that the tenant may use.
        RefusedField: the checkpoint is one of another base model, or cannot be sampled from.
    """
    base_model, _, path = name.rpartition(";") if ";tinker://" in name else ("", "", name)
    model_path = path if path.startswith("tinker://") else None
    wanted = bodies.CreateSamplingSession(
        session_id=_NO_SESSION,
        sampling_session_seq_id=0,
        base_model=(base_model or None) if model_path else path,
        model_path=model_path,
    )
    try:
        served, is_shared = await weights_to_sample(services, identity, wanted)
        base = await access.served_base_model(services, served)
    except NotFound as error:
        raise UnknownModel(str(error)) from None
    except UserError as error:
        raise RefusedField(str(error), "model") from None
    return Source(name, base, _session(services, identity, base, model_path, is_shared))


async def check_served(services: Services, base: BaseModelInfo) -> None:
    """Refuse at once what would wait for a worker that may never come.

    Raises:
        Unavailable: no worker serves the base model at the moment.
    """
    workers = await services.store.workers.list()
    if not any(each.is_alive and each.base_model == base.name for each in workers):
        raise Unavailable(f"no worker serves {base.name} at the moment; try again later")


def _session(
    services: Services,
    identity: Identity,
    base: BaseModelInfo,
    model_path: str | None,
    is_shared: bool,
) -> SamplingSession:
    """The one internal sampling session of this tenant and these weights; no client opened it."""
    name = "\n".join((identity.tenant_id, base.name, model_path or ""))
    session_id = str(uuid.uuid5(_NAMESPACE, name))
    return SamplingSession(
        sampling_session_id=ids.sampling_session_id(session_id, 0),
        tenant_id=identity.tenant_id,
        session_id=session_id,
        base_model=base.name,
        weights_path=model_path,
        model_path=model_path,
        created_at_ms=services.clock.now_ms(),
        is_shared=is_shared,
    )


async def listed(services: Services, identity: Identity) -> list[Json]:
    """Base models, then the tenant's sampler checkpoints, newest first."""
    bases = {each.name: each for each in await services.store.base_models.list()}
    tenant_id, bound = identity.tenant_id, identity.key.project_id
    if bound is None:
        found, _ = await services.store.checkpoints.list(tenant_id, 0, _MAX_LISTED)
    else:
        found = await projects.checkpoints(services, tenant_id, bound, with_external=False)
    checkpoints = [
        _of_checkpoint(each, bases[each.base_model])
        for each in found
        if each.kind is CheckpointKind.SAMPLER and each.base_model in bases
    ]
    return [await _of_base(services, each) for each in bases.values()] + checkpoints


async def described(services: Services, identity: Identity, name: str) -> Json:
    """One model by its name.

    Raises:
        UnknownModel: there is nothing of this name that the tenant may use.
    """
    source = await find(services, identity, name)
    checkpoint = None
    if source.session.weights_path is not None:
        checkpoint = await services.store.checkpoints.get(source.session.weights_path)
    if checkpoint is None:
        return await _of_base(services, source.base)
    return _of_checkpoint(checkpoint, source.base) | {"id": name}


async def _of_base(services: Services, base: BaseModelInfo) -> Json:
    workers = [w for w in await services.store.workers.list() if w.base_model == base.name]
    since_ms = min((each.registered_at_ms for each in workers), default=0)
    return _model(base.name, since_ms, "cyclora", base, None)


def _of_checkpoint(checkpoint: Checkpoint, base: BaseModelInfo) -> Json:
    return _model(checkpoint.path, checkpoint.created_at_ms, checkpoint.tenant_id, base, base.name)


def _model(
    name: str, created_at_ms: int, owner: str, base: BaseModelInfo, parent: str | None
) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": created_at_ms // 1000,
        "owned_by": owner,
        "parent": parent,
        "max_model_len": base.max_context_length,
    }
