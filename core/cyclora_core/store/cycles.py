"""The scheduler's side of the clock: lead, gather, dispatch, bury."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from cyclora_core import codec, ids
from cyclora_core.accounts import Tenant
from cyclora_core.errors import ErrorCategory
from cyclora_core.operations import OperationKind
from cyclora_core.store.connection import Connection, text
from cyclora_core.store.futures import FUTURE_TTL_MS
from cyclora_core.store.handovers import Handovers
from cyclora_core.store.placements import Placements
from cyclora_core.store.quotas import Quotas
from cyclora_core.store.workers import Workers
from cyclora_core.types import Cycle, PendingOperation
from cyclora_core.waiting import (
    Assignment,
    Waiting,
    WaitingModel,
    WaitingSample,
    WorkerState,
    WorkerStats,
)

# Redis before 7 rounds less down to 0, which means for ever.
_MIN_WAIT_S = 0.001


class DispatchOutcome(StrEnum):
    """Why a cycle was not dispatched."""

    NOT_LEADER = "not_leader"
    BUSY = "busy"
    DEAD = "dead"
    STALE = "stale"


class Cycles:
    """What only the leading scheduler does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._workers = Workers(connection)
        self._handovers = Handovers(connection)
        self._quotas = Quotas(connection)
        self._placements = Placements(connection)

    async def lead(self, token: str, lease_s: float, replaces: str = "") -> bool:
        """Become or remain the leader; one whose token begins with ``replaces`` counts as dead."""
        args = [token, round(lease_s * 1000), replaces]
        return bool(await self._connection.run("lead", [self._keys.leader()], args))

    async def resign(self, token: str) -> bool:
        """Stop leading, if we did, so that a standby need not wait for the lease to end."""
        keys = [self._keys.leader(), self._keys.vacancy()]
        return bool(await self._connection.run("resign", keys, [token]))

    async def wait_for_vacancy(self, wait_s: float) -> None:
        """Return when the leader resigned, or after ``wait_s``.

        A standby must not wait for work: it would take the wake-up from the leader.
        """
        await self._redis.blpop([self._keys.vacancy()], timeout=max(wait_s, _MIN_WAIT_S))

    async def wait_for_work(self, wait_s: float) -> None:
        """Return when something was submitted or a worker became free, or after ``wait_s``."""
        await self._redis.blpop([self._keys.wake()], timeout=max(wait_s, _MIN_WAIT_S))

    async def workers(self) -> list[WorkerState]:
        return [
            WorkerState(
                status.worker_id,
                status.base_model,
                status.is_alive,
                status.cycle_id is None and not status.info["is_draining"],
                WorkerStats(
                    status.info["tokens_per_s"],
                    status.info["free_sample_tokens"],
                    status.info["max_sample_tokens"],
                    status.info.get("free_adapter_bytes", 0),
                    status.info.get("max_adapter_bytes", 0),
                    status.info["is_draining"],
                    status.info.get("used_sample_tokens", {}),
                ),
                status.is_draining,
                status.num_models,
            )
            for status in await self._workers.list()
        ]

    async def weights(self, tenant_ids: Sequence[str]) -> dict[str, float]:
        """The weight of each of these tenants, of those that exist."""
        rows = await self._redis.hmget(self._keys.tenants(), tenant_ids)
        tenants = [codec.load(Tenant, row) for row in rows if row is not None]
        return {tenant.tenant_id: tenant.weight for tenant in tenants}

    async def gather(self, base_model: str, max_operations: int, max_samples: int) -> Waiting:
        """All ready models with their next operations, and the head of each sample queue.

        With them what their tenants may start, read last: it is charged when they start.
        """
        keys = self._keys
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(keys.ready_models(base_model))
            pipe.smembers(keys.sample_tenants(base_model))
            pipe.smembers(keys.placements(base_model))
            ready, tenants, wished = await pipe.execute()
        wishes = await self._placements.wishes(row.decode() for row in wished)
        model_ids = sorted(row.decode() for row in ready)
        samples = await self._gather_samples(
            base_model, sorted(row.decode() for row in tenants), max_samples
        )
        models = await self._gather_models(model_ids, max_operations)
        tenant_ids = {model.tenant_id for model in models}
        tenant_ids |= {sample.operation.tenant_id for sample in samples}
        allowances = await self._quotas.allowances(sorted(tenant_ids))
        return Waiting(models, samples, allowances, wishes)

    async def _gather_models(
        self, model_ids: Sequence[str], max_operations: int
    ) -> list[WaitingModel]:
        if not model_ids:
            return []
        keys = self._keys
        pairs = [key for each in model_ids for key in (keys.model(each), keys.log(each))]
        rows = await self._connection.run("gather", pairs, [max_operations])
        models = [_waiting_model(*pair) for pair in zip(model_ids, rows, strict=True)]
        return [model for model in models if model.operations]

    async def _gather_samples(
        self, base_model: str, tenant_ids: Sequence[str], max_samples: int
    ) -> list[WaitingSample]:
        if not tenant_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant_id in tenant_ids:
                pipe.lrange(self._keys.sample_queue(base_model, tenant_id), 0, max_samples - 1)
            queues = await pipe.execute()
        entries = [(json.loads(entry), entry.decode()) for queue in queues for entry in queue]
        paths = {path for fields, _ in entries if (path := fields.get("weights_path"))}
        # After the queues: what was handed over before a sample was sent must be seen with it.
        holders = await self._handovers.holders(sorted(paths))
        return [
            WaitingSample(_pending(fields), entry, holders.get(fields.get("weights_path")))
            for fields, entry in entries
        ]

    async def dispatch(
        self,
        token: str,
        cycle: Cycle,
        assignments: Sequence[Assignment],
        samples: Sequence[WaitingSample],
        nonce: str | None = None,
    ) -> int | DispatchOutcome:
        """Hand a cycle to its worker; returns its number, or why nothing happened.

        Asking again with the same nonce returns the first answer and dispatches nothing.
        """
        keys = self._keys
        models: list[str] = []
        args: list[str | int | bytes] = [
            token,
            cycle.worker_id,
            cycle.base_model,
            json.dumps(cycle.to_json()),
            nonce or uuid.uuid4().hex,
            len(assignments),
            len(samples),
            self._connection.clock.now_ms(),
        ]
        starting: dict[str, list[str]] = {}
        for assignment in assignments:
            planned = assignment.planned
            last = planned.operations[-1] if planned.operations else None
            part = last.datum_range if last else None
            passes = [each.request_id for each in planned.operations if each.kind.is_pass]
            starting.setdefault(planned.tenant_id, []).extend(passes)
            stays = assignment.expected_worker_id == cycle.worker_id
            no_part = "" if stays and last is None else -1
            held_by = keys.worker_models(assignment.expected_worker_id or cycle.worker_id)
            models += [keys.model(planned.model_id), held_by]
            args += [
                assignment.expected_worker_id or "",
                assignment.expected_epoch,
                planned.epoch,
                last.seq_id if last and part else no_part,
                part.stop if part else 0,
                planned.model_id,
                str(assignment.wish or ""),
            ]
        futures: list[str] = []
        for sample in samples:
            operation = sample.operation
            queue = keys.sample_queue(cycle.base_model, operation.tenant_id)
            futures += [keys.future(operation.request_id), queue]
            args += [sample.entry, operation.request_id, operation.tenant_id]
            starting.setdefault(operation.tenant_id, []).append(operation.request_id)
        charges: list[str] = []
        for tenant_id, requests in starting.items():
            charges += [keys.quota_use(tenant_id), *(keys.future(each) for each in requests)]
            args += [tenant_id, len(requests)]
        reply = await self._connection.run(
            "dispatch",
            [
                keys.leader(),
                keys.worker(cycle.worker_id),
                keys.worker_lease(cycle.worker_id),
                keys.worker_inbox(cycle.worker_id),
                keys.cycle_counters(),
                keys.worker_samples(cycle.worker_id),
                keys.sample_tenants(cycle.base_model),
                keys.tenants(),
                keys.worker_models(cycle.worker_id),
                keys.placements(cycle.base_model),
                *models,
                *futures,
                *charges,
            ],
            args,
        )
        return reply if isinstance(reply, int) else DispatchOutcome(reply.decode())

    async def gaps(self) -> dict[str, int]:
        """The models with a gap, and the last seq_id in front of each gap.

        The two together name a gap: when it is filled and another remains, that one is new.
        """
        keys = self._keys
        model_ids = [row.decode() for row in await self._redis.zrange(keys.gaps(), 0, -1)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in model_ids:
                pipe.hget(keys.model(model_id), "logged_seq_id")
            rows = await pipe.execute()
        return {
            model_id: int(row)
            for model_id, row in zip(model_ids, rows, strict=True)
            if row is not None
        }

    async def close_gap(
        self, token: str, model_id: str, logged_seq_id: int, waited_s: float
    ) -> bool:
        """Give up on the request behind ``logged_seq_id``; true when the model went on.

        False when we do not lead, the gap is no longer what it was, or what is missing was refused
        for now within that time: look again.
        """
        keys = self._keys
        held = sorted(int(row) for row in await self._redis.hkeys(keys.held(model_id)))
        requests = [ids.request_id(model_id, seq_id) for seq_id in held]
        tenant_id = text(await self._redis.hget(keys.model(model_id), "tenant_id"))
        message = (
            f"request {logged_seq_id + 1} of this model did not arrive within {waited_s:g} s; the "
            "ones sent after it were not run, and it can no longer be sent: go on with the next "
            "request"
        )
        reply = await self._connection.run(
            "close_gap",
            [
                keys.leader(),
                keys.model(model_id),
                keys.log(model_id),
                keys.held(model_id),
                keys.gaps(),
                keys.quota_use(tenant_id),
                *(key for each in requests for key in (keys.future(each), keys.body(each))),
            ],
            [
                token,
                model_id,
                message,
                ErrorCategory.USER,
                FUTURE_TTL_MS,
                keys.settled_channel(),
                logged_seq_id,
                self._connection.clock.now_ms(),
                round(waited_s * 1000),
                *(each for pair in zip(held, requests, strict=True) for each in pair),
            ],
        )
        return reply == b"closed"

    async def bury(self, token: str, worker_id: str, base_model: str) -> bool:
        """Declare a worker dead whose lease ran out; true when it was."""
        keys = self._keys
        held = await self._redis.hgetall(keys.worker_samples(worker_id))
        sample_keys: list[str] = []
        args: list[str | int | bytes] = [token, worker_id]
        for request_id, entry in sorted(held.items(), reverse=True):
            tenant_id = json.loads(entry)["tenant_id"]
            sample_keys += [
                keys.future(request_id.decode()),
                keys.sample_queue(base_model, tenant_id),
                keys.sample_tenants(base_model),
            ]
            args += [tenant_id, entry]
        reply = await self._connection.run(
            "bury",
            [
                keys.leader(),
                keys.worker(worker_id),
                keys.workers(),
                keys.worker_lease(worker_id),
                keys.worker_inbox(worker_id),
                keys.worker_samples(worker_id),
                keys.wake(),
                keys.worker_cancelled(worker_id),
                keys.worker_models(worker_id),
                *sample_keys,
            ],
            args,
        )
        return reply == b"buried"


def _waiting_model(model_id: str, row: Sequence[Any]) -> WaitingModel:
    tenant_id, worker_id, epoch, partial_seq_id, partial_stop, entries = row
    operations = [json.loads(entry) for entry in entries]
    return WaitingModel(
        model_id,
        tenant_id.decode(),
        worker_id.decode() or None,
        int(epoch),
        int(partial_seq_id),
        int(partial_stop),
        [_pending(entry) for entry in operations if not entry["is_refused"]],
    )


def _pending(entry: dict[str, Any]) -> PendingOperation:
    return PendingOperation(
        request_id=entry["request_id"],
        kind=OperationKind(entry["kind"]),
        tenant_id=entry["tenant_id"],
        owner_id=entry["owner_id"],
        seq_id=entry["seq_id"],
        num_tokens=entry["num_tokens"],
        datum_tokens=entry["datum_tokens"],
        shared_tokens=entry.get("shared_tokens", ()),
        submitted_at_ms=entry["submitted_at_ms"],
    )
