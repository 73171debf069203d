"""Scheduler and workers around one store, driven step by step, with a tiny real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cyclora_core import ids, payload
from cyclora_core.blocks import shared_tokens
from cyclora_core.clock import ManualClock
from cyclora_core.operations import (
    Body,
    CreateModelBody,
    DimuonStepBody,
    LoraConfig,
    OperationKind,
    OptimStepBody,
    PassBody,
    PassResult,
    SaveWeightsBody,
)
from cyclora_core.optimizers import OptimizerType
from cyclora_core.records import Future, FutureState, NewModel, Submission
from cyclora_core.samples import SampleBody
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.types import BaseModelInfo
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.settings import SchedulerSettings
from cyclora_workers.base_model import BaseModel
from cyclora_workers.engine import Engine
from cyclora_workers.loop import Worker
from cyclora_workers.metrics import WorkerMetrics
from cyclora_workers.sampling.sampler import Sampler
from workers.builders import cross_entropy

SESSION_ID = "11111111-2222-3333-4444-555555555555"
LORA = LoraConfig(4, seed=1)
STEP = OptimStepBody(learning_rate=1e-2)


class Harness:
    """Everything of a deployment but the server, without processes and without waiting."""

    def __init__(
        self,
        store: Store,
        clock: ManualClock,
        folder: Path,
        base_model: BaseModel,
        min_cycle_tokens: int = 2048,
    ) -> None:
        self.store = store
        self.clock = clock
        self.storage = Storage(folder)
        self.base_model = base_model
        settings = SchedulerSettings(
            min_cycle_tokens=min_cycle_tokens, max_cycle_tokens=min_cycle_tokens
        )
        self.scheduler = Scheduler(store, settings, clock, self._pause)
        self.workers: list[Worker] = []
        self.next_seq_ids: dict[str, int] = {}

    async def _pause(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def start_worker(
        self,
        *,
        max_replay_s: float = 1000.0,
        max_kv_tokens: int = 10_000,
        decode_steps_per_microbatch: int = 1,
        max_adapter_bytes: int = 2**40,
        max_host_adapter_bytes: int = 2**30,
        metrics: WorkerMetrics | None = None,
        name: str = "worker",
    ) -> Worker:
        """A new process of a worker: an earlier one of its name counts as dead from now on."""
        base = self.base_model
        engine = Engine(
            base,
            Sampler(base, max_kv_tokens=max_kv_tokens, detokenize=None),
            max_tokens_per_microbatch=256,
            decode_steps_per_microbatch=decode_steps_per_microbatch,
            max_cached_samplers=2,
        )
        info = BaseModelInfo(
            base.name, base.vocab_size, base.max_context_length, [3], "tiny", 1, 64, "/a/b/c/d"
        )
        worker = Worker(
            self.store,
            self.storage,
            engine,
            info,
            worker_id=f"worker-{len(self.workers)}",
            worker_name=name,
            lease_s=30.0,
            max_replay_s=max_replay_s,
            max_adapter_bytes=max_adapter_bytes,
            max_host_adapter_bytes=max_host_adapter_bytes,
            drain_s=10.0,
            max_engine_call_s=60.0,
            clock=self.clock,
            metrics=metrics,
        )
        self.workers.append(worker)
        await worker.register()
        return worker

    async def submit(
        self,
        kind: OperationKind,
        body: Body | None,
        *,
        model: int = 0,
        tenant_id: str = "tenant-a",
        owner_id: str | None = None,
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> str:
        owner = owner_id or ids.model_id(SESSION_ID, model)
        seq_id = self.next_seq_ids.get(owner, 0)
        self.next_seq_ids[owner] = seq_id + 1
        request_id = ids.request_id(owner, seq_id)
        sizes: list[int] = []
        shared: list[int] = []
        num_tokens = 0
        new_model = None
        if isinstance(body, PassBody):
            sizes = [len(datum.tokens) for datum in body.data]
            shared = shared_tokens([datum.tokens for datum in body.data])
            num_tokens = sum(sizes)
        elif isinstance(body, SampleBody):
            tokens = len(body.prompt_tokens) + (body.params.max_tokens or 0)
            num_tokens = tokens * body.num_samples
        elif isinstance(body, CreateModelBody):
            new_model = NewModel(SESSION_ID, body.lora, optimizer_type=optimizer_type)
        await self.store.operations.submit(
            Submission(
                request_id=request_id,
                kind=kind,
                tenant_id=tenant_id,
                owner_id=owner,
                seq_id=seq_id,
                base_model=self.base_model.name,
                body=payload.encode(body.to_payload() if body else payload.Payload({}, {})),
                num_tokens=num_tokens,
                datum_tokens=sizes,
                shared_tokens=shared,
                new_model=new_model,
                weights_path=body.weights_path if isinstance(body, SampleBody) else None,
            )
        )
        return request_id

    async def create(
        self,
        model: int = 0,
        lora: LoraConfig = LORA,
        tenant: str = "",
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> str:
        return await self.submit(
            OperationKind.CREATE_MODEL,
            CreateModelBody(self.base_model.name, lora),
            model=model,
            tenant_id=tenant or "tenant-a",
            optimizer_type=optimizer_type,
        )

    async def train(
        self,
        body: PassBody,
        model: int = 0,
        tenant: str = "",
        step: OptimStepBody | DimuonStepBody = STEP,
    ) -> str:
        """A forward_backward and the optim_step behind it; returns the first one's request_id."""
        tenant_id = tenant or "tenant-a"
        request_id = await self.submit(
            OperationKind.FORWARD_BACKWARD, body, model=model, tenant_id=tenant_id
        )
        await self.submit(OperationKind.OPTIM_STEP, step, model=model, tenant_id=tenant_id)
        return request_id

    async def save(self, name: str, model: int = 0) -> str:
        path = f"tinker://{ids.model_id(SESSION_ID, model)}/weights/{name}"
        return await self.submit(OperationKind.SAVE_WEIGHTS, SaveWeightsBody(path), model=model)

    async def run_until_idle(self) -> None:
        """Let the scheduler and the newest worker work until nothing is left."""
        num_cycles = 1
        while num_cycles:
            num_cycles = await self.scheduler.run_until_idle()
            await self.workers[-1].run_until_idle()

    async def run_all_until_idle(self) -> None:
        """The same with all workers, which must all live."""
        num_cycles = 1
        while num_cycles:
            num_cycles = await self.scheduler.run_until_idle()
            for worker in self.workers:
                await worker.run_until_idle()

    async def future(self, request_id: str) -> Future:
        future = await self.store.futures.get(request_id)
        assert future is not None
        return future

    async def pass_result(self, request_id: str) -> PassResult:
        future = await self.future(request_id)
        assert future.state is FutureState.DONE, future.error
        assert future.result is not None
        return PassResult.from_payload(payload.decode(future.result))


def same(first: PassResult, second: PassResult) -> bool:
    """Equal to the bit, apart from the number of the cycle."""
    return first.metrics["loss:sum"] == second.metrics["loss:sum"] and all(
        np.array_equal(a, b) for a, b in zip(first.logprobs, second.logprobs, strict=True)
    )


async def run_steps(harness: Harness, model: int, num_steps: int = 5) -> list[PassResult]:
    tenant = f"tenant-{model}"
    await harness.create(model, tenant=tenant)
    requests = [
        await harness.train(cross_entropy([7, 13, 1, 9], seed=step), model, tenant)
        for step in range(num_steps)
    ]
    await harness.run_until_idle()
    return [await harness.pass_result(request) for request in requests]
