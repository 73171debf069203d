"""Objects by id, for whoever asks with a key of the tenant they belong to.

Every lookup by an id that a client sent goes through here: another tenant's object answers exactly
like a missing one, so ids cannot be probed. For a key that is bound to a project, so does what is
in another project of its own tenant.
"""

from __future__ import annotations

import asyncio

from cyclora_core import ids
from cyclora_core.accounts import Tenant
from cyclora_core.custom_loss import CustomLoss
from cyclora_core.errors import Gone, NotFound, Unavailable
from cyclora_core.ids import CheckpointPath
from cyclora_core.logs import name_in_log
from cyclora_core.records import Checkpoint, SamplingSession, Session
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.types import BaseModelInfo, ModelRecord
from cyclora_server import projects
from cyclora_server.auth import Identity
from cyclora_server.services import Services


async def existing_tenant(services: Services, tenant_id: str) -> Tenant:
    """A tenant that an administrator named and that was not deleted."""
    tenant = await services.store.tenants.get(tenant_id)
    if tenant is None or tenant.deleted_at_ms is not None:
        raise NotFound(f"tenant {tenant_id[:100]!r} does not exist")
    return tenant


async def owned_session(services: Services, identity: Identity, session_id: str) -> Session:
    """A session of this tenant, finished or not."""
    is_valid = ids.is_session_id(session_id)
    session = await services.store.sessions.get(session_id) if is_valid else None
    if (
        session is None
        or session.tenant_id != identity.tenant_id
        or not projects.is_open(identity, projects.of_session(session))
    ):
        raise NotFound(f"session {session_id[:100]!r} does not exist")
    return session


async def live_session(services: Services, identity: Identity, session_id: str) -> Session:
    """A session of this tenant that may still start work.

    Raises:
        Gone: its client finished it.
    """
    session = await owned_session(services, identity, session_id)
    if session.finished_reason is not None:
        raise Gone(f"session {session_id} was finished ({session.finished_reason}); open a new one")
    return session


async def owned_model(services: Services, identity: Identity, model_id: str) -> ModelRecord:
    """A model of this tenant."""
    model = await services.store.models.get(model_id) if ids.is_model_id(model_id) else None
    if model is None or not await _is_own(services, identity, model):
        raise NotFound(no_model(model_id))
    name_in_log(model_id=model_id)
    return model


def no_model(model_id: str) -> str:
    return f"model {model_id[:100]!r} does not exist"


async def owned_sampling_session(
    services: Services, identity: Identity, sampling_session_id: str
) -> SamplingSession:
    """A sampling session of this tenant."""
    is_valid = ids.is_sampling_session_id(sampling_session_id)
    record = await services.store.sampling.get(sampling_session_id) if is_valid else None
    if (
        record is None
        or record.tenant_id != identity.tenant_id
        or not await is_open_session(services, identity, record.session_id)
    ):
        raise NotFound(f"sampling session {sampling_session_id[:100]!r} does not exist")
    return record


async def owned_checkpoint(
    services: Services, identity: Identity, path: CheckpointPath
) -> Checkpoint:
    """A named checkpoint of this tenant that has not expired."""
    checkpoint = await readable_checkpoint(services, identity, path)
    if not await _is_own_checkpoint(services, identity, checkpoint):
        raise NotFound(no_checkpoint(path))
    return checkpoint


async def readable_checkpoint(
    services: Services, identity: Identity, path: CheckpointPath
) -> Checkpoint:
    """A named checkpoint that this key may load, sample and copy: its own, or published."""
    checkpoint = await services.store.checkpoints.get(str(path))
    if (
        checkpoint is None
        or not _is_there(services, checkpoint)
        or not (checkpoint.is_public or await _is_own_checkpoint(services, identity, checkpoint))
    ):
        raise NotFound(no_checkpoint(path))
    return checkpoint


def _is_there(services: Services, checkpoint: Checkpoint) -> bool:
    return checkpoint.is_listed and not checkpoint.has_expired(services.clock.now_ms())


def no_checkpoint(path: CheckpointPath) -> str:
    return f"checkpoint {str(path)!r} does not exist or has expired"


async def readable_run(
    services: Services, identity: Identity, model_id: str
) -> tuple[ModelRecord, list[Checkpoint]]:
    """A training run with those of its checkpoints that this key may read, newest first.

    Raises:
        NotFound: it does not exist, or is another tenant's and has nothing published.
    """
    model = await services.store.models.get(model_id) if ids.is_model_id(model_id) else None
    if model is not None:
        is_own = await _is_own(services, identity, model)
        found = await services.store.checkpoints.of_model(model_id)
        readable = [
            each for each in found if _is_there(services, each) and (is_own or each.is_public)
        ]
        if is_own or readable:
            return model, readable
    raise NotFound(no_model(model_id))


async def is_open_session(services: Services, identity: Identity, session_id: str) -> bool:
    """Whether a session of the tenant is of the project that the key is bound to, if it is.

    One that no client opened is of none: keys of all projects sample in it over the OpenAI API.
    """
    if identity.key.project_id is None:
        return True
    session = await services.store.sessions.get(session_id)
    return session is not None and projects.is_open(identity, projects.of_session(session))


async def _is_own(services: Services, identity: Identity, model: ModelRecord) -> bool:
    if model.tenant_id != identity.tenant_id:
        return False
    if identity.key.project_id is None:
        return True
    project_of = await projects.of_models(services, [model])
    return projects.is_open(identity, project_of[model.model_id])


async def _is_own_checkpoint(
    services: Services, identity: Identity, checkpoint: Checkpoint
) -> bool:
    if checkpoint.tenant_id != identity.tenant_id:
        return False
    if identity.key.project_id is None:
        return True
    model = await services.store.models.get(checkpoint.model_id)
    return model is not None and await _is_own(services, identity, model)


async def custom_loss_of(services: Services, model: ModelRecord, loss_id: str) -> CustomLoss:
    """A custom loss that the model's own session uploaded; others can use none of it."""
    is_own = ids.is_loss_id(loss_id) and ids.session_of(loss_id) == model.session_id
    loss = await services.store.custom_losses.get(loss_id) if is_own else None
    if loss is None:
        raise NotFound(
            f"custom loss {loss_id[:100]!r} does not exist in this session; it ends with the "
            "session that created it"
        )
    return loss


async def served_base_model(services: Services, name: str) -> BaseModelInfo:
    """A base model that a client asked for by name.

    Raises:
        NotFound: no worker ever served it; the message lists what is served.
    """
    info = await services.store.base_models.get(name)
    if info is None:
        served = ", ".join(each.name for each in await services.store.base_models.list())
        raise NotFound(f"base model {name[:200]!r} is not served; served are: {served or 'none'}")
    return info


async def base_model_of(services: Services, name: str) -> BaseModelInfo:
    """The base model of something that exists already.

    Raises:
        Unavailable: its description is missing from the store, which a worker's start repairs.
    """
    info = await services.store.base_models.get(name)
    if info is None:
        raise Unavailable(f"no worker has registered base model {name!r} yet")
    return info


async def discard_checkpoint(services: Services, path: CheckpointPath, by: str) -> None:
    """Delete a checkpoint for good; ``by`` is the key_id of who asked, "" when it is ours.

    The record first: files without a record only take space, a record without files would be
    listed and then fail to load.
    """
    files = await services.store.checkpoints.delete(str(path), by)
    if files is not None:
        await delete_files(services, files)


async def delete_files(services: Services, files: CheckpointFiles) -> bool:
    """Delete the files of a checkpoint that has no record any more; false if that failed."""
    path = CheckpointPath.parse(files.path)
    if not await asyncio.to_thread(services.storage.delete_revision, path, files.revision):
        return False
    await services.store.checkpoints.files_deleted(files)
    return True
