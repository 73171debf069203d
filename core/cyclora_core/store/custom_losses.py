"""Custom losses: kept with the session that uploaded them, and gone when it ends."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum

from cyclora_core import codec, ids, payload
from cyclora_core.custom_loss import CustomLoss
from cyclora_core.operations import CustomLossResult, OperationKind
from cyclora_core.records import FutureState
from cyclora_core.store.connection import Connection
from cyclora_core.store.futures import FUTURE_TTL_MS

_KIB = 1024
MAX_LOSSES_PER_SESSION = 64
MAX_BYTES_PER_SESSION = 1024 * _KIB
MAX_LOSSES_PER_TENANT = 1024
MAX_BYTES_PER_TENANT = 8 * 1024 * _KIB

_DIGEST_CHARS = 64


class CreateLossOutcome(StrEnum):
    """What the store did with an upload."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The same loss was here before under this number."""
    CONFLICT = "conflict"
    """The number was used before for another loss."""
    FINISHED = "finished"
    """The session has ended, or never was."""
    SESSION_FULL = "session_full"
    TENANT_FULL = "tenant_full"


class CustomLosses:
    """Uploaded losses by session and number."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys

    async def create(
        self, tenant_id: str, session_id: str, custom_loss_seq_id: int, loss: CustomLoss
    ) -> CreateLossOutcome:
        """Store a loss and the future that says so; the same one again changes nothing."""
        keys = self._keys
        loss_id = ids.loss_id(session_id, custom_loss_seq_id)
        record = codec.dump(loss)
        future = {
            "tenant_id": tenant_id,
            "owner_id": ids.loss_owner_id(session_id),
            "seq_id": str(custom_loss_seq_id),
            "kind": str(OperationKind.CREATE_CUSTOM_LOSS),
            "state": str(FutureState.DONE),
        }
        outcome = await self._connection.run(
            "create_custom_loss",
            [
                keys.custom_losses_of_session(session_id),
                keys.custom_losses_of(tenant_id),
                keys.session(session_id),
                keys.future(loss_id),
            ],
            [
                custom_loss_seq_id,
                hashlib.sha256(record).hexdigest(),
                record,
                session_id,
                json.dumps(future),
                payload.encode(CustomLossResult(loss_id).to_payload()),
                FUTURE_TTL_MS,
                keys.settled_channel(),
                loss_id,
                MAX_LOSSES_PER_SESSION,
                MAX_BYTES_PER_SESSION,
                MAX_LOSSES_PER_TENANT,
                MAX_BYTES_PER_TENANT,
            ],
        )
        return CreateLossOutcome(outcome.decode())

    async def get(self, loss_id: str) -> CustomLoss | None:
        """The loss of an id; None when there is none, or its session has ended."""
        session_id, _, number = loss_id.split(":")
        row = await self._redis.hget(self._keys.custom_losses_of_session(session_id), number)
        return codec.load(CustomLoss, row[_DIGEST_CHARS:]) if row else None
