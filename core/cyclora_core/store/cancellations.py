"""Samples that nobody waits for any more: ended in the store first, then on their worker.

The future is final from the moment of the cancellation, so whatever dies afterwards, the sample
does not run again. That its worker lets go of it is only a matter of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from cyclora_core import ids
from cyclora_core.errors import ErrorCategory, ServerError
from cyclora_core.partials import RECORD_BYTES
from cyclora_core.quotas import day_of, month_of
from cyclora_core.records import FutureState
from cyclora_core.store.connection import Connection, text
from cyclora_core.store.futures import FUTURE_TTL_MS, clone_of
from cyclora_core.store.metering import METERED_KEPT_S, hour_of

_MAX_TRIES = 16
_MESSAGE = "the sample was cancelled by its client"


class CancelOutcome(StrEnum):
    """What the store did with a cancellation."""

    CANCELLED = "cancelled"
    FINAL = "final"
    """It had ended before, and stays as it ended."""
    UNKNOWN = "unknown"
    """There is no future of it, or none any more."""


class Cancellations:
    """The server ends samples; workers ask which of theirs were ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock

    async def cancel(
        self,
        tenant_id: str,
        base_model: str,
        sampling_session_id: str,
        seq_id: int,
        message: str = _MESSAGE,
    ) -> CancelOutcome:
        """End a sample that waits or runs; doing it twice is doing it once.

        What a stream has shown by then is charged; of others nobody has got anything.
        ``message`` is what the tenant reads.

        Raises:
            ServerError: it moved from worker to worker all the time.
        """
        keys = self._keys
        request_id = ids.request_id(sampling_session_id, seq_id)
        session_id, now_ms = ids.session_of(sampling_session_id), self._clock.now_ms()
        for _ in range(_MAX_TRIES):
            worker_id = text(await self._redis.hget(keys.future(request_id), "owner"))
            reply = await self._connection.run(
                "cancel_sample",
                [
                    keys.future(request_id),
                    keys.body(request_id),
                    keys.sample_queue(base_model, tenant_id),
                    keys.sample_tenants(base_model),
                    keys.completions(sampling_session_id, clone_of(seq_id)),
                    keys.worker_samples(worker_id),
                    keys.worker_cancelled(worker_id),
                    keys.worker_inbox(worker_id),
                    keys.pending_samples(session_id),
                    keys.partial(request_id),
                    keys.quota_use(tenant_id),
                    keys.usage(tenant_id),
                    keys.metered(tenant_id, hour_of(now_ms)),
                    keys.session(session_id),
                ],
                [
                    worker_id,
                    tenant_id,
                    FutureState.FAILED,
                    message,
                    ErrorCategory.USER,
                    FUTURE_TTL_MS,
                    keys.settled_channel(),
                    request_id,
                    RECORD_BYTES,
                    base_model,
                    session_id,
                    METERED_KEPT_S * 1000,
                    day_of(now_ms),
                    month_of(now_ms),
                ],
            )
            if reply != b"moved":
                return CancelOutcome(reply.decode())
        raise ServerError(f"{request_id} changed its worker {_MAX_TRIES} times")

    async def of_worker(self, worker_id: str) -> list[str]:
        """Samples of a worker that were ended and that it may still run."""
        rows = await self._redis.smembers(self._keys.worker_cancelled(worker_id))
        return sorted(row.decode() for row in rows)

    async def heeded(self, worker_id: str, request_ids: Sequence[str]) -> None:
        """Say that the worker let go of samples."""
        if request_ids:
            await self._redis.srem(self._keys.worker_cancelled(worker_id), *request_ids)
