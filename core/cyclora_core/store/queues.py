"""Looking at what waits, and ending it; for administrators."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cyclora_core import ids
from cyclora_core.errors import ErrorCategory, ServerError
from cyclora_core.operations import OperationKind
from cyclora_core.queues import WaitingOperation, WaitingState
from cyclora_core.store.audit import Audit
from cyclora_core.store.cancellations import Cancellations, CancelOutcome
from cyclora_core.store.connection import Connection, text
from cyclora_core.store.futures import FUTURE_TTL_MS
from cyclora_core.store.workers import BaseModels

_MESSAGE = "cancelled by an administrator; it has not run"
_KEPT = frozenset({OperationKind.CREATE_MODEL, OperationKind.UNLOAD_MODEL})
"""Never ended: without the first a model would have no state, without the second no end."""

_BODY_TTL_MS = 10 * 60 * 1000
_MAX_TRIES = 16


@dataclass(frozen=True, slots=True)
class _Running:
    """What a worker was given."""

    base_model: str
    entry: str = ""
    """That of a sample, which is in no queue any more."""


class Queues:
    """All that has not settled, whoever's it is."""

    def __init__(
        self, connection: Connection, base_models: BaseModels, cancellations: Cancellations
    ) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._audit = Audit(connection)
        self._base_models = base_models
        self._cancellations = cancellations

    async def waiting(
        self, tenant_id: str | None = None, model_id: str | None = None
    ) -> list[WaitingOperation]:
        """Of a tenant, of a model, or all; the one that has waited longest first."""
        running = await self._running()
        found: list[WaitingOperation] = []
        for base_model in await self._base_models.list():
            found += await self._of_models(base_model.name, running)
            found += await self._of_samples(base_model.name, running)
        chosen = (
            each
            for each in found
            if tenant_id in (None, each.tenant_id) and model_id in (None, each.owner_id)
        )
        return sorted(chosen, key=lambda each: (each.submitted_at_ms, each.owner_id, each.seq_id))

    async def _running(self) -> dict[str, _Running]:
        """What workers were given, by request_id."""
        keys = self._keys
        workers = [row.decode() for row in await self._redis.smembers(keys.workers())]
        async with self._redis.pipeline(transaction=False) as pipe:
            for worker_id in workers:
                pipe.hmget(keys.worker(worker_id), ("cycle_id", "cycle", "base_model"))
                pipe.hgetall(keys.worker_samples(worker_id))
            rows = await pipe.execute()
        found: dict[str, _Running] = {}
        for (cycle_id, cycle, base_model), samples in zip(rows[::2], rows[1::2], strict=True):
            name = text(base_model)
            for model in json.loads(cycle)["models"] if cycle_id else []:
                found |= {each["request_id"]: _Running(name) for each in model["operations"]}
            for request_id, entry in samples.items():
                found[request_id.decode()] = _Running(name, entry.decode())
        return found

    async def _of_models(
        self, base_model: str, running: Mapping[str, _Running]
    ) -> list[WaitingOperation]:
        keys = self._keys
        ready = await self._redis.smembers(keys.ready_models(base_model))
        gaps = await self._redis.zrange(keys.gaps(), 0, -1)
        model_ids = sorted({row.decode() for row in (*ready, *gaps)})
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in model_ids:
                pipe.hmget(keys.model(model_id), ("applied_seq_id", "base_model"))
                pipe.hvals(keys.held(model_id))
            rows = await pipe.execute()
        states = zip(model_ids, rows[::2], rows[1::2], strict=True)
        # A gap is known by its model alone, whichever base model that is of.
        mine = [
            (name, int(row[0]), held) for name, row, held in states if text(row[1]) == base_model
        ]
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id, applied, _ in mine:
                pipe.xrange(keys.log(model_id), f"{applied + 1}-1", "+")
            logs = await pipe.execute()
        found: list[WaitingOperation] = []
        for (_, _, held), log in zip(mine, logs, strict=True):
            logged = [fields[b"entry"] for _, fields in log]
            found += _operations(logged, base_model, running)
            found += _operations(held, base_model, running, WaitingState.HELD)
        return found

    async def _of_samples(
        self, base_model: str, running: Mapping[str, _Running]
    ) -> list[WaitingOperation]:
        keys = self._keys
        rows = await self._redis.smembers(keys.sample_tenants(base_model))
        tenants = sorted(row.decode() for row in rows)
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant_id in tenants:
                pipe.lrange(keys.sample_queue(base_model, tenant_id), 0, -1)
            queues = await pipe.execute()
        waiting = [entry for queue in queues for entry in queue]
        decoding = [each.entry for each in running.values() if each.base_model == base_model]
        return _operations([*waiting, *filter(None, decoding)], base_model, running)

    async def cancel_model(self, tenant_id: str, model_id: str, by: str = "") -> int:
        """End what waits of a model and no worker was given; returns how many operations.

        Each becomes a failed future, and its place in the order is used up: what is sent
        afterwards runs. A creation and an unloading that wait stay. ``by`` is the key_id of who
        asked.

        Raises:
            ServerError: the model moved from worker to worker all the time.
        """
        keys = self._keys
        waiting = [
            each
            for each in await self.waiting(tenant_id, model_id)
            if each.kind not in _KEPT and each.state is not WaitingState.RUNNING
        ]
        if not waiting:
            return 0
        waiting.sort(key=lambda each: each.seq_id)
        details = {"model_id": model_id, "key_id": by or None}
        entry = self._audit.entry("queue_cancel", details)
        for _ in range(_MAX_TRIES):
            worker_id = text(await self._redis.hget(keys.model(model_id), "worker_id"))
            reply = await self._connection.run(
                "cancel_operations",
                [
                    keys.model(model_id),
                    keys.log(model_id),
                    keys.held(model_id),
                    keys.ready_models(waiting[0].base_model),
                    keys.worker(worker_id),
                    keys.audit(tenant_id),
                    keys.quota_use(tenant_id),
                    *(
                        key
                        for each in waiting
                        for key in (keys.future(each.request_id), keys.body(each.request_id))
                    ),
                ],
                [
                    model_id,
                    worker_id,
                    _MESSAGE,
                    ErrorCategory.USER,
                    FUTURE_TTL_MS,
                    _BODY_TTL_MS,
                    keys.settled_channel(),
                    *self._audit.script_args(entry),
                    *(part for each in waiting for part in (each.seq_id, each.request_id)),
                ],
            )
            if isinstance(reply, int):
                return reply
        raise ServerError(f"{model_id} changed its worker {_MAX_TRIES} times")

    async def cancel_samples(
        self, tenant_id: str, samples: Iterable[WaitingOperation], by: str = ""
    ) -> int:
        """End samples of a tenant, waiting or running; returns how many had not ended."""
        num_ended = 0
        for each in samples:
            outcome = await self._cancellations.cancel(
                tenant_id, each.base_model, each.owner_id, each.seq_id, _MESSAGE
            )
            num_ended += outcome is CancelOutcome.CANCELLED
        if num_ended:
            await self._audit.add("queue_cancel", {"num_samples": num_ended}, by, tenant_id)
        return num_ended

    async def cancel_tenant(self, tenant_id: str, by: str = "") -> int:
        """End all that waits of a tenant and no worker was given; returns how many."""
        waiting = await self.waiting(tenant_id)
        queued = [each for each in waiting if each.state is not WaitingState.RUNNING]
        samples = [each for each in queued if each.kind is OperationKind.SAMPLE]
        num_ended = await self.cancel_samples(tenant_id, samples, by)
        for model_id in sorted(
            {each.owner_id for each in queued if ids.is_model_id(each.owner_id)}
        ):
            num_ended += await self.cancel_model(tenant_id, model_id, by)
        return num_ended


def _operations(
    entries: Iterable[bytes | str],
    base_model: str,
    running: Mapping[str, _Running],
    state: WaitingState = WaitingState.QUEUED,
) -> list[WaitingOperation]:
    fields: list[dict[str, Any]] = [json.loads(entry) for entry in entries]
    return [
        WaitingOperation(
            request_id=each["request_id"],
            kind=OperationKind(each["kind"]),
            tenant_id=each["tenant_id"],
            owner_id=each["owner_id"],
            seq_id=each["seq_id"],
            base_model=base_model,
            num_tokens=each["num_tokens"],
            submitted_at_ms=each["submitted_at_ms"],
            state=WaitingState.RUNNING if each["request_id"] in running else state,
        )
        for each in fields
        if not each["is_refused"]
    ]
