"""Models: one tenant's adapter each, and which worker holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cyclora_core.operations import LoraConfig
from cyclora_core.optimizers import OptimizerType
from cyclora_core.records import NewModel
from cyclora_core.store.connection import Connection, as_dict
from cyclora_core.types import ModelRecord


class Models:
    """Read side of models; they are created and advanced by submit and settle."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys

    async def get(self, model_id: str) -> ModelRecord | None:
        found = await self.get_many([model_id])
        return found[0] if found else None

    async def get_many(self, model_ids: Sequence[str]) -> list[ModelRecord]:
        """Those that exist, in the order asked for."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in model_ids:
                pipe.hgetall(self._keys.model(model_id))
            rows = await pipe.execute()
        found = zip(model_ids, (as_dict(row) for row in rows), strict=True)
        return [model_record(model_id, fields) for model_id, fields in found if fields]

    async def list(self, tenant_id: str, offset: int, limit: int) -> tuple[list[ModelRecord], int]:
        """A page, newest first, and the number of all."""
        key = self._keys.models_of(tenant_id)
        total = int(await self._redis.zcard(key))
        rows = await self._redis.zrevrange(key, offset, offset + limit - 1)
        return await self.get_many([row.decode() for row in rows]), total

    async def waiting(self, base_model: str) -> set[str]:
        """Models of a base model that have operations to run, or running."""
        rows = await self._redis.smembers(self._keys.ready_models(base_model))
        return {row.decode() for row in rows}

    async def of_session(self, session_id: str) -> list[str]:
        rows = await self._redis.zrange(self._keys.models_of_session(session_id), 0, -1)
        return [row.decode() for row in rows]

    async def record_snapshot(self, model_id: str, worker_id: str, epoch: int, seq_id: int) -> bool:
        """Note that storage holds the state after ``seq_id`` and drop the log up to there.

        Of a model that has ended the log is dropped the same way, with no state in its place.
        Returns False when the model was assigned to another worker meanwhile.
        """
        log_key = self._keys.log(model_id)
        entries = await self._redis.xrange(log_key, "-", f"{seq_id}-1")
        logged = (json.loads(fields[b"entry"]) for _, fields in entries)
        # What nobody sent, in a gap that was closed, has an entry without a request.
        requests = [entry["request_id"] for entry in logged if "request_id" in entry]
        outcome = await self._connection.run(
            "record_snapshot",
            [
                self._keys.model(model_id),
                log_key,
                self._keys.failed(model_id),
                *(self._keys.body(request_id) for request_id in requests),
            ],
            [worker_id, epoch, seq_id],
        )
        return outcome == b"recorded"


def new_model_fields(
    model: NewModel, tenant_id: str, base_model: str, now_ms: int
) -> Mapping[str, str | int]:
    """What the hash of a fresh model holds."""
    return {
        "tenant_id": tenant_id,
        "session_id": model.session_id,
        "base_model": base_model,
        "lora": json.dumps(model.lora.to_payload().meta),
        "optimizer_type": model.optimizer_type,
        "user_metadata": json.dumps(dict(model.user_metadata)),
        "created_at_ms": now_ms,
        "logged_seq_id": -1,
        "applied_seq_id": -1,
        "snapshot_seq_id": -1,
        "snapshot_epoch": 0,
        "worker_id": "",
        "epoch": 0,
    }


def model_record(model_id: str, fields: Mapping[str, str]) -> ModelRecord:
    return ModelRecord(
        model_id=model_id,
        tenant_id=fields["tenant_id"],
        session_id=fields["session_id"],
        base_model=fields["base_model"],
        lora=LoraConfig(**json.loads(fields["lora"])),
        created_at_ms=int(fields["created_at_ms"]),
        last_request_at_ms=int(fields.get("last_request_at_ms", fields["created_at_ms"])),
        logged_seq_id=int(fields["logged_seq_id"]),
        applied_seq_id=int(fields["applied_seq_id"]),
        snapshot_seq_id=int(fields["snapshot_seq_id"]),
        snapshot_epoch=int(fields["snapshot_epoch"]),
        worker_id=fields["worker_id"] or None,
        epoch=int(fields["epoch"]),
        user_metadata=json.loads(fields["user_metadata"]),
        is_ended=fields.get("is_ended") == "1",
        copied_from=fields.get("copied_from"),
        project_id=fields.get("project_id"),
        optimizer_type=OptimizerType(fields.get("optimizer_type", OptimizerType.ADAMW)),
    )
