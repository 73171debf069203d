"""Copies of checkpoints: each in a training run of its own, which cannot be trained on."""

from __future__ import annotations

import json

from cyclora_core import codec
from cyclora_core.ids import session_of
from cyclora_core.quotas import Excess
from cyclora_core.records import UPLOADED, Checkpoint, NewModel
from cyclora_core.store.audit import Audit
from cyclora_core.store.books import Books
from cyclora_core.store.checkpoints import files_of
from cyclora_core.store.connection import Connection
from cyclora_core.store.models import new_model_fields


class Copies:
    """Records copies; the files are in storage by then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys
        self._books = Books(connection.keys, connection.clock, Audit(connection))

    async def record(
        self, copy: Checkpoint, copied_from: str, project_id: str | None, by: str = ""
    ) -> bool:
        """Record a copy and its training run; false when that run exists already.

        ``by`` is the key_id of who asked.

        Raises:
            UserError: its tenant would have more stored than it may have.
        """
        is_upload = copied_from.startswith(UPLOADED)
        action, source = ("upload", "source") if is_upload else ("copy", "source_path")
        entry = self._books.entry(action, copy, **{source: copied_from}, key_id=by or None)
        keys, expires_at_ms = self._keys, copy.expires_at_ms
        run = NewModel(session_of(copy.model_id), copy.lora, optimizer_type=copy.optimizer_type)
        fields: dict[str, str | int] = {
            **new_model_fields(run, copy.tenant_id, copy.base_model, copy.created_at_ms),
            # No client may take the run's number for a model: that one's first request is used up.
            "logged_seq_id": 0,
            "applied_seq_id": 0,
            "is_ended": 1,
            "copied_from": copied_from,
        }
        if project_id is not None:
            fields["project_id"] = project_id
        reply = await self._connection.run(
            "record_copy",
            [
                keys.model(copy.model_id),
                keys.models_of(copy.tenant_id),
                keys.models_of_session(run.session_id),
                keys.checkpoint(copy.path),
                keys.expiring_checkpoints(),
                keys.doomed_files(),
                keys.checkpoints_of(copy.tenant_id),
                keys.checkpoints_of_model(copy.model_id),
                *self._books.keys_of(copy),
            ],
            [
                copy.model_id,
                json.dumps({name: str(value) for name, value in fields.items()}),
                copy.created_at_ms,
                copy.path,
                codec.dump(copy),
                "" if expires_at_ms is None else expires_at_ms,
                str(files_of(copy)),
                *self._books.args(copy, entry, is_made=True, by=by, project_id=project_id),
            ],
        )
        if isinstance(reply, list):
            raise Excess.of(reply, copy.num_bytes, copy.created_at_ms).error()
        return reply == b"recorded"
