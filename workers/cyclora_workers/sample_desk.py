"""Samples on this worker: admitted from a cycle, settled when they finish, whenever that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from cyclora_core.errors import FencedOut, ServerError
from cyclora_core.operations import OperationKind
from cyclora_core.records import Checkpoint
from cyclora_core.samples import SampleBody, SampleResult
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.store.metering import Meter
from cyclora_core.store.operations import Outcome
from cyclora_core.types import Cycle, Execution, PlannedSample
from cyclora_workers.checkpoint_reads import read_checkpoint
from cyclora_workers.engine import Engine
from cyclora_workers.handover import HandOver
from cyclora_workers.metrics import WorkerMetrics, latency_s
from cyclora_workers.outcomes import as_outcome
from cyclora_workers.replay import InThread, decode_body
from cyclora_workers.sampling.sampler import FinishedSample

_log = structlog.get_logger()


@dataclass(slots=True)
class _Running:
    """A sample that was admitted and has not ended."""

    sample: PlannedSample
    ran: Execution
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class SampleDesk:
    """Keeps whose sample each request is while the sampler works on it."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        engine: Engine,
        in_thread: InThread,
        handover: HandOver,
        worker_id: str,
        base_model: str,
        metrics: WorkerMetrics,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._storage = storage
        self._engine = engine
        self._in_thread = in_thread
        self._handover = handover
        self._worker_id = worker_id
        self._base_model = base_model
        self._clock = store.clock
        self._running: dict[str, _Running] = {}

    @property
    def num_running(self) -> int:
        """Samples that were admitted and have not ended."""
        return len(self._running)

    async def admit(self, cycle: Cycle) -> None:
        """Hand a cycle's samples to the sampler; one that cannot run fails alone."""
        for sample in cycle.samples:
            request_id = sample.request_id
            if request_id in self._running:
                continue
            ran = Execution(cycle.cycle_id, cycle.dispatched_at_ms, self._clock.now_ms())
            # Known from here on: a cancellation that comes while it is admitted must find it.
            running = self._running[request_id] = _Running(sample, ran)
            try:
                (data,) = await self._store.operations.bodies([request_id])
                body = decode_body(OperationKind.SAMPLE, data)
                if not isinstance(body, SampleBody):
                    raise TypeError(f"{request_id} is not a sample")
                if request_id in self._running:
                    running.num_prompt_tokens = len(body.prompt_tokens)
                    await self._admit(sample, body)
            except ServerError:
                # Settled meanwhile, by another worker or its client: the body is gone with that.
                self._running.pop(request_id, None)
                _log.info("sample was settled before", request_id=request_id)
            except Exception as error:  # noqa: BLE001 - boundary: this sample alone fails
                if self._running.pop(request_id, None) is not None:
                    await self._settle(running, as_outcome(error, 0, request_id))
            if request_id not in self._running:
                await self._in_thread(self._engine.cancel, [request_id])

    async def cancel(self, request_ids: Sequence[str]) -> None:
        """Let go of samples that were ended in the store; nothing is settled."""
        for request_id in request_ids:
            self._running.pop(request_id, None)
        await self._in_thread(self._engine.cancel, request_ids)

    async def _admit(self, sample: PlannedSample, body: SampleBody) -> None:
        admit = partial(self._in_thread, self._engine.admit, sample.request_id, body)
        if body.weights_path is None:
            return await admit(None, None, sample.tenant_id)

        async def read(checkpoint: Checkpoint, folder: Path) -> None:
            await self._handover.at_hand(checkpoint, folder)
            await admit(checkpoint.lora, folder, sample.tenant_id)

        return await read_checkpoint(self._store, self._storage, body.weights_path, read)

    async def show(self) -> None:
        """Let whoever streams a running sample see its new tokens."""
        # In the engine's thread: a cancellation may be taking one away there.
        partials = await self._in_thread(self._engine.sampler.take_partials)
        await self._store.operations.show_partials(self._worker_id, partials)

    async def settle(self, finished: Sequence[FinishedSample]) -> None:
        for each in finished:
            running = self._running.pop(each.request_id, None)
            if running is None:
                continue  # cancelled while its last token was drawn
            num_tokens = 0
            if isinstance(each.result, SampleResult):
                num_tokens = sum(len(sequence.tokens) for sequence in each.result.sequences)
                running.num_cached_tokens = each.result.prompt_cache_hit_tokens
            outcome = as_outcome(each.result, num_tokens, each.request_id)
            await self._settle(running, outcome)

    async def _settle(self, running: _Running, outcome: Outcome) -> None:
        sample = running.sample
        try:
            reply = await self._store.operations.settle_sample(
                worker_id=self._worker_id,
                tenant_id=sample.tenant_id,
                base_model=self._base_model,
                sampling_session_id=sample.sampling_session_id,
                seq_id=sample.seq_id,
                request_id=sample.request_id,
                outcome=outcome,
                num_prefilled_tokens=running.num_prompt_tokens - running.num_cached_tokens,
                num_cached_tokens=running.num_cached_tokens,
                ran=running.ran,
            )
        except FencedOut:
            _log.warning("sample moved to another worker", request_id=sample.request_id)
            return
        self._metrics.settled(
            OperationKind.SAMPLE,
            sample.tenant_id,
            outcome,
            reply,
            latency_s=latency_s(sample.submitted_at_ms, self._clock.now_ms()),
            metered={
                Meter.PREFILL: running.num_prompt_tokens - running.num_cached_tokens,
                Meter.CACHED_PREFILL: running.num_cached_tokens,
                Meter.SAMPLED: outcome.num_tokens,
            },
        )
