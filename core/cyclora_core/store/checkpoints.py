"""Checkpoints: what is in storage, whose it is, how it was made and when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cyclora_core import codec
from cyclora_core.accounts import AuditEntry
from cyclora_core.ids import CheckpointKind
from cyclora_core.quotas import Excess
from cyclora_core.records import Checkpoint
from cyclora_core.store.audit import Audit
from cyclora_core.store.books import Books
from cyclora_core.store.connection import Connection

MAX_DROPPED_AT_ONCE = 200
"""Expired checkpoints that are dropped in one go; the rest has its turn soon."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """One revision of a checkpoint in storage."""

    path: str
    revision: str

    def __str__(self) -> str:
        return f"{self.path} {self.revision}"


class Checkpoints:
    """Records of checkpoints by path; the files are in storage.

    One that has expired is never returned, whether its record is still there or not. The clock is
    that of whoever asks.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock
        self._books = Books(connection.keys, connection.clock, Audit(connection))

    async def put(self, checkpoint: Checkpoint) -> bool:
        """Record a checkpoint whose files are complete, replacing one of the same path.

        Returns false, and changes nothing, when a later save of the path was recorded before.

        Raises:
            UserError: its tenant would have more stored than it may have; nothing was changed.
        """
        entry = self._books.entry(
            "create",
            checkpoint,
            request_id=checkpoint.request_id or None,
            size_bytes=checkpoint.num_bytes,
        )
        return await self._put(checkpoint, b"", entry)

    async def get(self, path: str) -> Checkpoint | None:
        found = await self._load([path])
        return found[0] if found else None

    async def of_model(self, model_id: str) -> list[Checkpoint]:
        """Newest first."""
        [found] = await self.of_models([model_id])
        return found

    async def of_models(self, model_ids: Sequence[str]) -> list[list[Checkpoint]]:
        """Each model's, newest first."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for model_id in model_ids:
                pipe.zrevrange(self._keys.checkpoints_of_model(model_id), 0, -1)
            paths = [[row.decode() for row in rows] for rows in await pipe.execute()]
        return [await self._load(each) for each in paths]

    async def published(self) -> list[Checkpoint]:
        """Every tenant's that every tenant may read, in no particular order."""
        rows = await self._redis.smembers(self._keys.published_checkpoints())
        return await self._load([row.decode() for row in rows])

    async def unlisted_of_model(self, model_id: str) -> list[str]:
        """Paths of the checkpoints behind a model's ephemeral sampling sessions."""
        rows = await self._redis.smembers(self._keys.unlisted_of_model(model_id))
        return sorted(row.decode() for row in rows)

    async def list(
        self, tenant_id: str, offset: int, limit: int, *, with_external: bool = True
    ) -> tuple[list[Checkpoint], int]:
        """A page, newest first, and the number of all."""
        # Before counting: pages over rows of which some are left out would not add up.
        while await self.drop_expired() == MAX_DROPPED_AT_ONCE:
            pass
        key = self._keys.checkpoints_of(tenant_id)
        if with_external:
            total = int(await self._redis.zcard(key))
            rows = await self._redis.zrevrange(key, offset, offset + limit - 1)
        else:
            kind = f"/{CheckpointKind.EXTERNAL}/".encode()
            others = [row for row in await self._redis.zrevrange(key, 0, -1) if kind not in row]
            rows, total = others[offset : offset + limit], len(others)
        return await self._load([row.decode() for row in rows]), total

    async def _load(self, paths: Sequence[str]) -> list[Checkpoint]:
        if not paths:
            return []
        rows = await self._redis.mget([self._keys.checkpoint(path) for path in paths])
        return self._live(_loaded(rows))

    def _live(self, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        now_ms = self._clock.now_ms()
        return [checkpoint for checkpoint in found if not checkpoint.has_expired(now_ms)]

    async def set_expiry(self, path: str, expires_at_ms: int | None, by: str = "") -> bool:
        """Have a checkpoint end then, or never; false when there is none.

        ``by`` is the key_id of who asked.
        """

        def change(found: Checkpoint) -> tuple[Checkpoint, AuditEntry | None]:
            changed = dataclasses.replace(found, expires_at_ms=expires_at_ms)
            details = {"expires_at_ms": expires_at_ms, "key_id": by or None}
            return changed, self._books.entry("set_ttl", found, **details)

        return await self._change(path, change)

    async def set_public(self, path: str, is_public: bool, by: str = "") -> bool:
        """Let every tenant read a checkpoint, or only its own; false when there is none.

        ``by`` is the key_id of who asked.
        """

        def change(found: Checkpoint) -> tuple[Checkpoint, AuditEntry | None]:
            changed = dataclasses.replace(found, is_public=is_public)
            action = "publish" if is_public else "unpublish"
            return changed, self._books.entry(action, found, key_id=by or None)

        return await self._change(path, change)

    async def _change(
        self, path: str, change: Callable[[Checkpoint], tuple[Checkpoint, AuditEntry | None]]
    ) -> bool:
        while True:
            data = await self._redis.get(self._keys.checkpoint(path))
            found = self._live(_loaded([data]))
            if not found:
                return False
            changed, entry = change(found[0])
            if await self._put(changed, data, entry):
                return True

    async def _put(self, checkpoint: Checkpoint, expected: bytes, entry: AuditEntry | None) -> bool:
        expires_at_ms, now_ms = checkpoint.expires_at_ms, self._clock.now_ms()
        reply = await self._connection.run(
            "put_checkpoint",
            self._keys_of(checkpoint),
            [
                checkpoint.path,
                codec.dump(checkpoint),
                expected,
                "" if expires_at_ms is None else expires_at_ms,
                checkpoint.created_at_ms,
                int(checkpoint.is_listed),
                str(files_of(checkpoint)),
                int(checkpoint.is_public),
                *self._books.args(checkpoint, entry, is_made=not expected),
            ],
        )
        if isinstance(reply, list):
            raise Excess.of(reply, checkpoint.num_bytes, now_ms).error()
        return reply == b"put"

    async def delete(self, path: str, by: str = "") -> CheckpointFiles | None:
        """Forget a checkpoint, expired or not; returns the files to delete, None without it.

        ``by`` is the key_id of who asked.

        They are found again by ``doomed_files`` until ``files_deleted`` was told, whoever dies
        in between.
        """
        while data := await self._redis.get(self._keys.checkpoint(path)):
            if files := await self._drop(data, "delete", key_id=by or None):
                return files
        return None

    async def drop(self, checkpoint: Checkpoint, action: str, by: str = "") -> bool:
        """Forget a checkpoint that is still as it was read; false when it is not.

        ``action`` and ``by``, the key_id of who asked, are noted in the audit log. Its files are
        doomed.
        """
        data = await self._redis.get(self._keys.checkpoint(checkpoint.path))
        if not data or codec.load(Checkpoint, data) != checkpoint:
            return False
        return await self._drop(data, action, key_id=by or None) is not None

    async def drop_expired(self) -> int:
        """Forget some of the checkpoints that have expired; returns how many."""
        now_ms = self._clock.now_ms()
        rows = await self._redis.zrangebyscore(
            self._keys.expiring_checkpoints(), "-inf", now_ms, 0, MAX_DROPPED_AT_ONCE
        )
        num_dropped = 0
        for path in (row.decode() for row in rows):
            data = await self._redis.get(self._keys.checkpoint(path))
            # Renewed since we looked, or between reading it and dropping it: it stays.
            if data and codec.load(Checkpoint, data).has_expired(now_ms):
                num_dropped += await self._drop(data, "expire") is not None
        return num_dropped

    async def _drop(
        self, data: bytes, action: str, **details: str | None
    ) -> CheckpointFiles | None:
        checkpoint = codec.load(Checkpoint, data)
        files = files_of(checkpoint)
        reply = await self._connection.run(
            "drop_checkpoint",
            self._keys_of(checkpoint),
            [
                checkpoint.path,
                data,
                str(files),
                self._clock.now_ms(),
                *self._books.args(checkpoint, self._books.entry(action, checkpoint, **details)),
            ],
        )
        return files if reply == b"dropped" else None

    async def doom_files(self, files: CheckpointFiles, after_s: float) -> None:
        """Have files deleted that are about to be written, unless they get a record until then."""
        at_ms = self._clock.now_ms() + round(after_s * 1000)
        await self._redis.zadd(self._keys.doomed_files(), {str(files): at_ms})

    async def doomed_files(self, limit: int) -> list[CheckpointFiles]:
        """Files without a record that are to be deleted now, longest overdue first."""
        rows = await self._redis.zrangebyscore(
            self._keys.doomed_files(), "-inf", self._clock.now_ms(), 0, limit
        )
        return [CheckpointFiles(*row.decode().split(" ")) for row in rows]

    async def files_deleted(self, files: CheckpointFiles) -> None:
        await self._redis.zrem(self._keys.doomed_files(), str(files))

    def _keys_of(self, checkpoint: Checkpoint) -> list[str]:
        return [
            self._keys.checkpoint(checkpoint.path),
            self._keys.expiring_checkpoints(),
            self._keys.doomed_files(),
            self._keys.checkpoints_of(checkpoint.tenant_id),
            self._keys.checkpoints_of_model(checkpoint.model_id),
            self._keys.unlisted_of_model(checkpoint.model_id),
            self._keys.published_checkpoints(),
            *self._books.keys_of(checkpoint),
        ]


def _loaded(rows: Sequence[bytes | None]) -> list[Checkpoint]:
    return [codec.load(Checkpoint, row) for row in rows if row]


def files_of(checkpoint: Checkpoint) -> CheckpointFiles:
    return CheckpointFiles(checkpoint.path, checkpoint.revision)
