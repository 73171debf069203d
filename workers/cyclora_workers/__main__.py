"""The worker process: ``python -m cyclora_workers``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers.utils.logging
from structlog.contextvars import bind_contextvars
from transformers import AutoTokenizer

from cyclora_core.clock import SystemClock
from cyclora_core.environment import EXIT_CONFIGURATION, settings_or_exit
from cyclora_core.errors import FencedOut, UserError
from cyclora_core.health import Health
from cyclora_core.logs import configure_logs
from cyclora_core.metrics_endpoint import metrics_served
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.types import BaseModelInfo
from cyclora_workers.activation_memory import measure_activation_memory
from cyclora_workers.architecture import UnsupportedModel
from cyclora_workers.base_model import BaseModel
from cyclora_workers.engine import Engine
from cyclora_workers.freed_memory import keep_freed_memory
from cyclora_workers.loop import Worker
from cyclora_workers.metrics import WorkerMetrics
from cyclora_workers.precision import choose_dtype, cpu_has_bf16, hidden_size_of
from cyclora_workers.sampling.sampler import Sampler
from cyclora_workers.settings import WorkerSettings
from cyclora_workers.sources import model_folder

_log = structlog.get_logger()
_EXIT_FENCED = 75  # EX_TEMPFAIL: a supervisor should simply start the process again
_PATIENCE_S = 7 * 24 * 3600.0
"""A store that is full or away is waited for: what is computed must not be lost to it."""


class CannotServe(Exception):
    """The base model cannot be loaded; starting again would not help."""


class Progress:
    """Tells a supervisor through a file how far loading is."""

    def __init__(self, ready_file: Path | None) -> None:
        self._ready_file = ready_file

    def loading(self, stage: str, progress: float) -> None:
        _log.info("worker loading", stage=stage)
        self._write({"stage": stage, "progress": progress})

    def ready(self, info: BaseModelInfo) -> None:
        self._write(
            {
                "ready": True,
                "pid": os.getpid(),
                "base_model": info.name,
                "tokenizer_path": info.tokenizer_path,
            }
        )

    def _write(self, value: dict[str, Any]) -> None:
        if self._ready_file is not None:
            part = self._ready_file.with_suffix(".part")
            part.write_text(json.dumps(value))
            part.replace(self._ready_file)


def choose_device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def describe(
    base_model: BaseModel, settings: WorkerSettings, folder: Path, tokenizer_files: list[str]
) -> BaseModelInfo:
    """What this worker says about its base model."""
    longest = base_model.max_context_length
    bound = settings.max_context_length or longest
    return BaseModelInfo(
        name=settings.base_model,
        vocab_size=base_model.vocab_size,
        max_context_length=min(bound, longest),
        eos_token_ids=list(base_model.eos_token_ids),
        architecture=base_model.config.architectures[0],
        num_parameters=base_model.num_parameters,
        max_lora_rank=settings.max_lora_rank,
        tokenizer_path=str(folder),
        tokenizer_files=tokenizer_files,
    )


async def serve(settings: WorkerSettings) -> None:
    """Load the base model, then work until SIGTERM or SIGINT."""
    metrics = WorkerMetrics(settings.max_metric_tenants)
    health = Health(SystemClock(), metrics.instruments)
    registry = metrics.instruments.registry
    # While it loads too: it is alive then, and not ready.
    with metrics_served(settings.metrics_host, settings.metrics_port, registry, health):
        await _serve(settings, metrics, health)


async def _serve(settings: WorkerSettings, metrics: WorkerMetrics, health: Health) -> None:
    started_s = time.perf_counter()
    progress = Progress(settings.ready_file)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    device = choose_device(settings.device)
    if device.type == "cpu":
        # First of all: a thread that has allocated keeps the arena it got.
        _log.info("memory allocator set up", keeps_freed=keep_freed_memory())
    try:
        progress.loading("finding the base model", 0.05)
        folder = model_folder(settings.base_model_path)
        progress.loading("loading the tokenizer", 0.2)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        progress.loading("loading the base model", 0.4)
        dtype = choose_dtype(
            settings.dtype, device, hidden_size_of(str(folder)), has_bf16=cpu_has_bf16()
        )
        base_model = BaseModel.load(
            settings.base_model,
            folder,
            dtype=dtype,
            device=device,
            base_weights=settings.base_weights,
        )
    except (UserError, UnsupportedModel) as error:
        raise CannotServe(str(error)) from error
    progress.loading("joining the clock", 0.95)
    storage = Storage(settings.storage_url.resolve())
    info = describe(
        base_model, settings, folder, storage.put_tokenizer(settings.base_model, folder)
    )
    sampler = Sampler(base_model, max_kv_tokens=settings.max_kv_tokens, detokenize=tokenizer.decode)
    memory = measure_activation_memory(base_model)
    max_tokens = settings.max_tokens_per_microbatch or memory.microbatch_tokens(device)
    _log.info(
        "activation memory measured",
        bytes_per_token=round(memory.bytes_per_token),
        max_kept_tokens=memory.max_tokens,
        max_tokens_per_microbatch=max_tokens,
    )
    engine = Engine(
        base_model,
        sampler,
        max_tokens_per_microbatch=max_tokens,
        max_kept_tokens=memory.max_tokens,
        decode_steps_per_microbatch=settings.decode_steps_per_microbatch,
        max_cached_samplers=settings.max_cached_samplers,
    )
    store = await Store.open(
        settings.redis_url,
        settings.key_prefix,
        timeout_s=settings.store_timeout_s,
        patience_s=_PATIENCE_S,
    )
    worker = Worker(
        store,
        storage,
        engine,
        info,
        worker_id=f"{settings.worker_name}-{uuid.uuid4().hex[:8]}",
        worker_name=settings.worker_name,
        lease_s=settings.lease_s,
        max_replay_s=settings.max_replay_s,
        max_adapter_bytes=settings.max_adapter_bytes,
        max_host_adapter_bytes=settings.max_host_adapter_bytes,
        drain_s=settings.drain_s,
        max_engine_call_s=settings.max_engine_call_s,
        metrics=metrics,
    )
    bind_contextvars(worker_id=worker.worker_id)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await worker.register()
    await store.processes.put("worker", settings.worker_name, settings.model_dump(mode="json"))
    health.live_if("engine", lambda: worker.is_engine_moving)
    health.ready_if("lease", lambda: worker.has_lease)
    beating = asyncio.create_task(health.keep_beating())
    health.is_serving = True
    metrics.load_s.set(time.perf_counter() - started_s)
    progress.ready(info)
    _log.info(
        "worker ready",
        base_model=info.name,
        device=str(device),
        dtype=str(dtype),
        base_weights=settings.base_weights,
    )
    stopping_told = asyncio.create_task(_tell(stopping, health))
    try:
        await worker.run(stopping)
    finally:
        health.is_serving = False
        stopping_told.cancel()
        beating.cancel()
        await store.close()


async def _tell(stopping: asyncio.Event, health: Health) -> None:
    """A worker that is told to stop takes nothing new, though it works for a while yet."""
    await stopping.wait()
    health.is_serving = False


def main() -> None:
    settings = settings_or_exit(WorkerSettings)
    configure_logs("worker", level=settings.log_level, as_json=settings.log_json)
    # Its lines go where all others go, and bars of progress nowhere.
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.disable_progress_bar()
    try:
        asyncio.run(serve(settings))
    except* CannotServe as group:
        _log.error("base model cannot be served", reason=str(group.exceptions[0]))
        sys.exit(EXIT_CONFIGURATION)
    except* FencedOut as group:
        _log.warning("worker fenced out", reason=str(group.exceptions[0]))
        sys.exit(_EXIT_FENCED)


if __name__ == "__main__":
    main()
