"""How an operation's result or failure is put before its tenant."""

from __future__ import annotations

import errno
import uuid

import structlog

from cyclora_core import payload
from cyclora_core.errors import CycloraError, ErrorCategory, UserError
from cyclora_core.operations import Result
from cyclora_core.records import OperationError
from cyclora_core.store.operations import Outcome

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ROOM_MESSAGE = (
    "the server's storage has no room left; nothing was written and the model is as it was: try "
    "again when room has been made, by deleting checkpoints or by its operator"
)

_log = structlog.get_logger()


def as_outcome(result: Result | Exception, num_tokens: int, request_id: str) -> Outcome:
    """What to settle; an error of ours gets an id and keeps its text to the log."""
    if not isinstance(result, Exception):
        return Outcome(payload.encode(result.to_payload()), num_tokens=num_tokens)
    if isinstance(result, UserError):
        error = OperationError(str(result), ErrorCategory.USER)
        return Outcome(None, error, is_replayed=False)
    if isinstance(result, OSError) and result.errno in _NO_ROOM:
        _log.error("storage has no room", request_id=request_id, reason=str(result))
        error = OperationError(_NO_ROOM_MESSAGE, ErrorCategory.SERVER)
        return Outcome(None, error, is_replayed=False)
    error_id = uuid.uuid4().hex[:12]
    _log.error("operation failed", request_id=request_id, error_id=error_id, exc_info=result)
    category = result.category if isinstance(result, CycloraError) else ErrorCategory.SERVER
    error = OperationError(f"the server failed on this operation (error {error_id})", category)
    return Outcome(None, error, is_replayed=False)
