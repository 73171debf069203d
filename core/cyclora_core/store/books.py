"""What changes of checkpoints leave in the audit log and in what is metered, as scripts write it.

``scripts/account.lua`` takes what is made here, in the same step as the change itself.
"""

from __future__ import annotations

from cyclora_core.accounts import AuditEntry
from cyclora_core.clock import Clock
from cyclora_core.ids import session_of
from cyclora_core.records import Checkpoint
from cyclora_core.store.audit import Audit
from cyclora_core.store.keys import Keys
from cyclora_core.store.metering import METERED_KEPT_S, hour_of, ms_left


class Books:
    """Keys and arguments of the scripts that change checkpoints."""

    def __init__(self, keys: Keys, clock: Clock, audit: Audit) -> None:
        self._keys = keys
        self._clock = clock
        self._audit = audit

    def entry(
        self, action: str, checkpoint: Checkpoint, **details: str | int | bool | None
    ) -> AuditEntry | None:
        """An audit entry about a checkpoint; None about one that has no name."""
        if not checkpoint.is_listed:
            return None
        about = {"tinker_path": checkpoint.path, "model_id": checkpoint.model_id}
        return self._audit.entry(f"checkpoint_{action}", {**about, **details})

    def keys_of(self, checkpoint: Checkpoint) -> list[str]:
        hour = hour_of(self._clock.now_ms())
        keys, tenant_id = self._keys, checkpoint.tenant_id
        return [
            keys.audit(tenant_id),
            keys.metered(tenant_id, hour),
            keys.stored(tenant_id),
            keys.stored_as(tenant_id),
            keys.session(session_of(checkpoint.model_id)),
            keys.future(checkpoint.request_id),
            keys.quota_use(tenant_id),
            keys.tenants(),
        ]

    def args(
        self,
        checkpoint: Checkpoint,
        entry: AuditEntry | None,
        *,
        is_made: bool = False,
        by: str = "",
        project_id: str | None = None,
    ) -> list[str | int | bytes]:
        """``is_made`` counts one checkpoint more, if it has a name.

        ``by`` is the key_id of who asked, of one that no operation has saved; ``project_id`` that
        of one whose session does not say.
        """
        return [
            *self._audit.script_args(entry),
            int(is_made and checkpoint.is_listed),
            METERED_KEPT_S * 1000,
            ms_left(self._clock.now_ms()),
            checkpoint.path,
            checkpoint.base_model,
            session_of(checkpoint.model_id),
            checkpoint.model_id,
            by,
            project_id or "",
        ]
