"""Objects by id, for the tenant they belong to.

Every lookup by an id that a client sent goes through here: another tenant's object answers exactly
like a missing one, so ids cannot be probed.
"""

from __future__ import annotations

import asyncio

from cyclora_core import ids
from cyclora_core.custom_loss import CustomLoss
from cyclora_core.errors import Gone, NotFound, Unavailable
from cyclora_core.ids import CheckpointPath
from cyclora_core.logs import name_in_log
from cyclora_core.records import Checkpoint, SamplingSession, Session
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.types import BaseModelInfo, ModelRecord
from cyclora_server.services import Services


async def owned_session(services: Services, tenant_id: str, session_id: str) -> Session:
    """A session of this tenant, finished or not."""
    is_valid = ids.is_session_id(session_id)
    session = await services.store.sessions.get(session_id) if is_valid else None
    if session is None or session.tenant_id != tenant_id:
        raise NotFound(f"session {session_id[:100]!r} does not exist")
    return session


async def live_session(services: Services, tenant_id: str, session_id: str) -> Session:
    """A session of this tenant that may still start work.

    Raises:
        Gone: its client finished it.
    """
    session = await owned_session(services, tenant_id, session_id)
    if session.finished_reason is not None:
        raise Gone(f"session {session_id} was finished ({session.finished_reason}); open a new one")
    return session


async def owned_model(services: Services, tenant_id: str, model_id: str) -> ModelRecord:
    """A model of this tenant."""
    model = await services.store.models.get(model_id) if ids.is_model_id(model_id) else None
    if model is None or model.tenant_id != tenant_id:
        raise NotFound(no_model(model_id))
    name_in_log(model_id=model_id)
    return model


def no_model(model_id: str) -> str:
    return f"model {model_id[:100]!r} does not exist"


async def owned_sampling_session(
    services: Services, tenant_id: str, sampling_session_id: str
) -> SamplingSession:
    """A sampling session of this tenant."""
    is_valid = ids.is_sampling_session_id(sampling_session_id)
    record = await services.store.sampling.get(sampling_session_id) if is_valid else None
    if record is None or record.tenant_id != tenant_id:
        raise NotFound(f"sampling session {sampling_session_id[:100]!r} does not exist")
    return record


async def owned_checkpoint(services: Services, tenant_id: str, path: CheckpointPath) -> Checkpoint:
    """A named checkpoint of this tenant that has not expired."""
    checkpoint = await readable_checkpoint(services, tenant_id, path)
    if checkpoint.tenant_id != tenant_id:
        raise NotFound(no_checkpoint(path))
    return checkpoint


async def readable_checkpoint(
    services: Services, tenant_id: str, path: CheckpointPath
) -> Checkpoint:
    """A named checkpoint that this tenant may load, sample and copy: its own, or published."""
    checkpoint = await services.store.checkpoints.get(str(path))
    if checkpoint is None or not _is_readable(services, tenant_id, checkpoint):
        raise NotFound(no_checkpoint(path))
    return checkpoint


def _is_readable(services: Services, tenant_id: str, checkpoint: Checkpoint) -> bool:
    is_allowed = checkpoint.tenant_id == tenant_id or checkpoint.is_public
    is_there = checkpoint.is_listed and not checkpoint.has_expired(services.clock.now_ms())
    return is_allowed and is_there


def no_checkpoint(path: CheckpointPath) -> str:
    return f"checkpoint {str(path)!r} does not exist or has expired"


async def readable_run(
    services: Services, tenant_id: str, model_id: str
) -> tuple[ModelRecord, list[Checkpoint]]:
    """A training run with those of its checkpoints that this tenant may read, newest first.

    Raises:
        NotFound: it does not exist, or is another tenant's and has nothing published.
    """
    model = await services.store.models.get(model_id) if ids.is_model_id(model_id) else None
    if model is not None:
        found = await services.store.checkpoints.of_model(model_id)
        readable = [each for each in found if _is_readable(services, tenant_id, each)]
        if model.tenant_id == tenant_id or readable:
            return model, readable
    raise NotFound(no_model(model_id))


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
