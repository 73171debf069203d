"""What is left to do when a session has ended: its models end, its unnamed weights go.

Whoever ends a session begins with it at once; the sweep of any server goes on with it if that one
dies. Doing it twice is doing it once.
"""

from __future__ import annotations

from cyclora_core.ids import CheckpointPath
from cyclora_server import access
from cyclora_server.services import Services
from cyclora_server.submission import submit_unload


async def clean_up(services: Services, session_id: str) -> None:
    """Unload the session's models after what was sent before, and delete unnamed weights.

    Raises:
        UserError: a model keeps receiving requests; to be done again later.
        Unavailable: the store is in trouble; the same.
    """
    model_ids = await services.store.models.of_session(session_id)
    for model_id in model_ids:
        for path in await services.store.checkpoints.unlisted_of_model(model_id):
            await access.discard_checkpoint(services, CheckpointPath.parse(path), by="")
    for model_id in model_ids:
        model = await services.store.models.get(model_id)
        if model is not None:
            await submit_unload(services, model)
    await services.store.sessions.cleaned_up(session_id)
