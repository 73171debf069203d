"""The worker: claim a cycle, execute it, decode samples while nothing else is to do."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from cyclora_core.clock import Clock, SystemClock
from cyclora_core.errors import FencedOut
from cyclora_core.placement import Held
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.types import BaseModelInfo, Cycle
from cyclora_core.waiting import WorkerStats
from cyclora_workers.engine import Engine
from cyclora_workers.executor import Executor
from cyclora_workers.handover import HandOver
from cyclora_workers.metrics import Watched, WorkerMetrics
from cyclora_workers.recovery import ModelKeeper
from cyclora_workers.sample_desk import SampleDesk
from cyclora_workers.sampling.sampler import FinishedSample

_CLAIM_WAIT_S = 1.0
_DECODE_STEPS_PER_TURN = 8
_STREAMED_STEPS_PER_TURN = 2
"""Whoever reads along sees two tokens at a time; every turn costs a round trip to the store."""

_log = structlog.get_logger()


class Worker:
    """One process's loop around its engine; computing happens in one thread beside it."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        engine: Engine,
        info: BaseModelInfo,
        *,
        worker_id: str,
        worker_name: str,
        lease_s: float,
        max_replay_s: float,
        max_adapter_bytes: int,
        max_host_adapter_bytes: int,
        drain_s: float,
        max_engine_call_s: float = math.inf,
        clock: Clock | None = None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._store = store
        metrics = metrics or WorkerMetrics()
        self._max_engine_call_s = max_engine_call_s
        self._call_began_mono_s: float | None = None
        self._engine = engine
        self._info = info
        self._worker_id = worker_id
        self._worker_name = worker_name
        self._lease_s = lease_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._drain_s = drain_s
        self._clock = clock or SystemClock()
        self._renewed_mono_s = -math.inf
        self._handover = HandOver(store, storage, engine, self._in_thread)
        self._keeper = ModelKeeper(
            store,
            storage,
            engine,
            self._in_thread,
            self._handover,
            worker_id,
            max_replay_s=max_replay_s,
            max_adapter_bytes=max_adapter_bytes,
            max_host_adapter_bytes=max_host_adapter_bytes,
            metrics=metrics,
        )
        self._samples = SampleDesk(
            store, storage, engine, self._in_thread, self._handover, worker_id, info.name, metrics
        )
        self._executor = Executor(
            store,
            storage,
            engine,
            self._keeper,
            self._samples,
            self._in_thread,
            self._handover,
            worker_id,
            metrics,
        )
        metrics.watch(
            Watched(
                engine,
                self._keeper.host,
                self._handover,
                lambda: self._samples.num_running,
                lambda: self._keeper.num_writing,
                lambda: self._clock.mono_s() - self._renewed_mono_s,
            )
        )
        self._cycles: asyncio.Queue[Cycle] = asyncio.Queue()
        self._last_cycle_id = 0
        self._shown: dict[str, Held] = {}
        self._is_draining = False

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._timed, function, *args)

    def _timed(self, function: Callable[..., Any], *args: Any) -> Any:
        self._call_began_mono_s = self._clock.mono_s()
        try:
            return function(*args)
        finally:
            self._call_began_mono_s = None

    @property
    def worker_id(self) -> str:
        return self._worker_id

    @property
    def has_lease(self) -> bool:
        """Whether it was renewed in time, as far as this process can tell."""
        return self._clock.mono_s() - self._renewed_mono_s <= self._lease_s

    @property
    def is_engine_moving(self) -> bool:
        """Whether the engine is idle, or its present call has not taken for ever yet."""
        began_s = self._call_began_mono_s
        return began_s is None or self._clock.mono_s() - began_s <= self._max_engine_call_s

    async def register(self) -> None:
        await self._store.base_models.put_target_modules(
            self._info.name, self._engine.base_model.target_modules
        )
        await self._store.workers.register(
            self._worker_id, self._worker_name, self._info, self._lease_s, await self._stats()
        )
        self._renewed_mono_s = self._clock.mono_s()

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until ``stopping`` is set; then finish what runs and write snapshots.

        Raises:
            FencedOut: this worker was declared dead; its process should start anew.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(self._stay_alive())
                claiming = tasks.create_task(self._claim())
                stop_waiter = tasks.create_task(stopping.wait())
                while not stopping.is_set():
                    await self._turn(stop_waiter)
                await self.drain()
                for task in (beating, claiming):
                    task.cancel()
        except* FencedOut:
            await self._handover.stop()
            raise
        await self._store.workers.retire(self._worker_id)
        self._thread.shutdown()

    async def drain(self) -> None:
        """Take no new cycle, let running samples finish in time, and write all states down."""
        self._is_draining = True
        await self._store.workers.report(self._worker_id, await self._stats())
        give_up_mono_s = self._clock.mono_s() + self._drain_s
        while not self._engine.sampler.is_idle and self._clock.mono_s() < give_up_mono_s:
            await self._decode()
        await self._handover.try_to_finish()
        await self._keeper.snapshot_all()
        _log.info("worker drained", num_unfinished_samples=self._samples.num_running)

    async def run_until_idle(self) -> None:
        """Execute what is dispatched and decode until nothing is left (for tests)."""
        while True:
            await self._heed_cancelled()
            cycle = await self._store.workers.claim(self._worker_id, self._last_cycle_id, 0)
            if cycle is not None:
                self._last_cycle_id = cycle.cycle_id
                await self._execute(cycle)
            elif self._engine.sampler.is_idle:
                await self._handover.try_to_finish()
                await self._keeper.snapshots_written()
                return
            else:
                await self._decode()

    async def _turn(self, stop_waiter: asyncio.Task[Any]) -> None:
        if not self._cycles.empty():
            await self._execute(self._cycles.get_nowait())
        elif not self._engine.sampler.is_idle:
            await self._decode()
        else:
            getter = asyncio.ensure_future(self._cycles.get())
            await asyncio.wait({getter, stop_waiter}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                await self._execute(getter.result())
            else:
                getter.cancel()

    async def _execute(self, cycle: Cycle) -> None:
        ended = await self._executor.execute(cycle)
        await self._show_places()
        stats = await self._stats()
        releasing = self._store.workers.release(self._worker_id, cycle.cycle_id, stats, ended)
        if self._engine.sampler.is_idle:
            await releasing
            return
        # New samples get their first tokens while the store takes the release to disk. What they
        # report comes behind it: of the two, the later one must say what is free.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(releasing)
            decoding = tasks.create_task(self._next_tokens())
        await self._deliver(decoding.result())

    async def _show_places(self) -> None:
        """Let administrators see which models came into memory, or left it."""
        places = await self._in_thread(self._keeper.places)
        gone: dict[str, Held | None] = dict.fromkeys(self._shown.keys() - places.keys())
        changed = {key: held for key, held in places.items() if self._shown.get(key) != held}
        if gone or changed:
            await self._store.placements.show(self._worker_id, gone | changed)
        self._shown = places

    async def _decode(self) -> None:
        await self._deliver(await self._next_tokens())

    async def _next_tokens(self) -> Sequence[FinishedSample]:
        num_steps = (
            _STREAMED_STEPS_PER_TURN if self._engine.sampler.has_streams else _DECODE_STEPS_PER_TURN
        )
        return await self._in_thread(self._engine.decode, num_steps)

    async def _deliver(self, finished: Sequence[FinishedSample]) -> None:
        await self._samples.show()
        if finished:
            await self._samples.settle(finished)
            await self._store.workers.report(self._worker_id, await self._stats())

    async def _stats(self) -> WorkerStats:
        # In the engine's thread: beside a claim it may be in the midst of a step.
        return await self._in_thread(self._measured)

    def _measured(self) -> WorkerStats:
        return WorkerStats(
            round(self._engine.tokens_per_s, 1),
            max(0, self._engine.sampler.room_tokens),
            self._engine.sampler.max_kv_tokens,
            self._keeper.free_bytes,
            self._keeper.max_bytes,
            self._is_draining,
            self._engine.sampler.used_tokens,
        )

    async def _claim(self) -> None:
        while True:
            cycle = await self._store.workers.claim(
                self._worker_id, self._last_cycle_id, _CLAIM_WAIT_S
            )
            if cycle is not None:
                self._last_cycle_id = cycle.cycle_id
                await self._cycles.put(cycle)
            await self._heed_cancelled()

    async def _heed_cancelled(self) -> None:
        """Let go of samples that were cancelled; the wake-up of a claim announces them too."""
        cancelled = await self._store.cancellations.of_worker(self._worker_id)
        if cancelled:
            await self._samples.cancel(cancelled)
            await self._store.cancellations.heeded(self._worker_id, cancelled)
            await self._store.workers.report(self._worker_id, await self._stats())

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            # A connection that went silent must not outlast the lease: the next try opens another.
            with contextlib.suppress(TimeoutError):
                asked_mono_s = self._clock.mono_s()
                async with asyncio.timeout(self._lease_s / 3):
                    is_alive = await self._store.workers.renew(self._worker_id, self._lease_s)
                if is_alive:
                    self._renewed_mono_s = asked_mono_s
                else:
                    raise FencedOut(f"worker {self._worker_id} was declared dead")
