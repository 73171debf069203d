"""A model's state made again: its snapshot, and the settled operations that followed it.

On the same hardware the numbers come out the same bit for bit, since blocks make them independent
of what shared the original cycles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from cyclora_core import payload
from cyclora_core.errors import ServerError, UserError
from cyclora_core.operations import BODY_TYPES, Body, OperationKind, PassBody
from cyclora_core.store import Store
from cyclora_core.types import ModelRecord, PlannedOperation
from cyclora_workers.engine import Engine, Pass
from cyclora_workers.host_states import HostStates

InThread = Callable[..., Awaitable[Any]]
"""Runs a function of the engine in its thread."""


class Replay:
    """Makes a model's state of one moment after another, in the engine, under any name."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        in_thread: InThread,
        record: ModelRecord,
        name: str | None = None,
    ) -> None:
        """Begin with nothing; ``name`` is what the engine calls the state, None the model_id."""
        self._store = store
        self._engine = engine
        self._in_thread = in_thread
        self._record = record
        self._name = name or record.model_id
        self._seq_id = -1
        self.num_operations = 0
        """Operations that were run again so far."""

    async def begin(self, host: HostStates) -> None:
        """Begin with the model's snapshot, if there is one.

        Raises:
            OSError: it cannot be read.
        """
        record = self._record
        if record.snapshot_seq_id < 0:
            return
        tensors = await host.take(record)
        await self._in_thread(
            self._engine.import_state, self._name, record.lora, tensors, record.optimizer_type
        )
        self._seq_id = record.snapshot_seq_id

    async def go_on_to(self, seq_id: int) -> None:
        """Run again what was settled up to an operation, that one included.

        Raises:
            ServerError: an operation failed that had succeeded, or its body is gone.
        """
        operations = await self._store.operations.replayable(
            self._record.model_id, self._seq_id + 1, seq_id
        )
        for operation in operations:
            (data,) = await self._store.operations.bodies([operation.request_id])
            await self._in_thread(self._run, operation, data)
        self._seq_id = max(self._seq_id, seq_id)
        self.num_operations += len(operations)

    def _run(self, operation: PlannedOperation, data: bytes) -> None:
        body = decode_body(operation.kind, data)
        engine, name = self._engine, self._name
        if isinstance(body, PassBody):
            one = Pass(operation.request_id, name, body, True, is_replay=True)
            *_, outcomes = engine.run_passes([one])
            failure = outcomes[one.request_id]
            if isinstance(failure, Exception):
                # It succeeded when it was settled; a state without it would be silently wrong.
                raise ServerError(f"replaying {one.request_id} failed") from failure
        elif operation.kind is OperationKind.OPTIM_STEP:
            with contextlib.suppress(UserError):  # refused then, refused now, to the same effect
                engine.optim_step(name, body)  # type: ignore[arg-type]
        else:
            engine.create(name, body.lora, self._record.optimizer_type)  # type: ignore[union-attr]


def decode_body(kind: OperationKind, data: bytes) -> Body:
    if kind is OperationKind.UNLOAD_MODEL:
        raise ValueError("unload_model has no body")
    return BODY_TYPES[kind].from_payload(payload.decode(data))
