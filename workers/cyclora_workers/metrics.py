"""What a worker measures: its cycles, tokens, samples, memory, snapshots and failures.

Nothing is updated within a pass or a decode step: engine and sampler count in plain numbers, which
are read when somebody asks, and the rest happens once per cycle or once per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from cyclora_core.metrics import LONG_S, Instruments, Reading, TenantLabels
from cyclora_core.operations import OperationKind
from cyclora_core.store.metering import Meter
from cyclora_core.store.operations import Outcome, SettleOutcome
from cyclora_workers.engine import Engine
from cyclora_workers.handover import HandOver
from cyclora_workers.host_states import HostStates
from cyclora_workers.phases import Phase, Phases
from cyclora_workers.sampling.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Watched:
    """What a worker's metrics are read from."""

    engine: Engine
    host: HostStates
    handover: HandOver
    num_samples: Callable[[], int]
    """Samples that were admitted and have not ended."""
    num_writing: Callable[[], int]
    """Snapshots on their way to storage."""
    lease_age_s: Callable[[], float]
    """Seconds since the lease was last renewed."""

    @property
    def sampler(self) -> Sampler:
        return self.engine.sampler


class WorkerMetrics:
    """The instruments of one worker."""

    def __init__(self, max_tenants: int = 100) -> None:
        self.instruments = made = Instruments("worker")
        self._tenants = TenantLabels(max_tenants)
        self._watched: Watched | None = None
        self._cycle_s = made.histogram(
            "cycle_seconds", "Seconds of a clock cycle in this worker.", bounds=LONG_S
        )
        self._phase_s = made.histogram(
            "cycle_phase_seconds", "The same by phase.", "phase", bounds=LONG_S
        )
        self._pass_tokens = made.counter(
            "pass_tokens", "Tokens through forward and backward passes, cycle by cycle."
        )
        self._tokens = made.counter(
            "tokens",
            "Tokens as metered when their operation settles, by tenant; those of tenants beyond "
            "the setting max_metric_tenants together as other.",
            "tenant_id",
            "meter",
        )
        self._settled = made.counter(
            "settled_operations", "Operations whose future became final.", "kind", "state"
        )
        self._failed = made.counter(
            "failed_operations", "Those that failed, by who must act.", "kind", "category"
        )
        self._operation_s = made.histogram(
            "operation_seconds",
            "Seconds from an operation's submission to its end, by the clocks of two machines.",
            "kind",
            bounds=LONG_S,
        )
        self._snapshot_s = made.histogram(
            "snapshot_seconds", "Seconds to write and record a snapshot.", bounds=LONG_S
        )
        self._snapshots_failed = made.counter(
            "snapshots_failed", "Snapshots that storage did not take."
        )
        self._restore_s = made.histogram(
            "restore_seconds", "Seconds to have a model's state in memory again.", bounds=LONG_S
        )
        self._replayed = made.counter("replayed_operations", "Operations run again to restore.")
        self._evicted = made.counter("evicted_adapters", "Adapter states that made way for others.")
        self.load_s = made.gauge(
            "base_model_load_seconds", "Seconds from the process's start until it was ready."
        )
        self._define_readings(made)

    def _define_readings(self, made: Instruments) -> None:
        gauge, counter, of = made.read_gauge, made.read_counter, self._of
        gauge(
            "lease_age_seconds",
            "Seconds since the lease was renewed.",
            of(lambda w: w.lease_age_s()),
        )
        gauge(
            "adapters",
            "Adapter states in memory: where they are computed with, or ready in host memory.",
            of(lambda w: {"resident": len(w.engine.adapter_bytes()), "host": w.host.num_states}),
            "place",
        )
        gauge(
            "adapter_bytes",
            "Memory of these.",
            of(lambda w: {"resident": sum(w.engine.adapter_bytes()), "host": w.host.num_bytes}),
            "place",
        )
        gauge(
            "sampler_weights",
            "Adapter weights kept for samples: those in storage too, and those not yet.",
            of(
                lambda w: {
                    "stored": w.engine.num_sampler_weights - w.handover.num_unwritten,
                    "unwritten": w.handover.num_unwritten,
                }
            ),
            "state",
        )
        gauge("snapshots_in_progress", "Snapshots being written.", of(lambda w: w.num_writing()))
        gauge("running_samples", "Samples admitted and not ended.", of(lambda w: w.num_samples()))
        gauge(
            "sample_rows",
            "Rows of samples: with KV memory, or waiting for it.",
            of(lambda w: {"running": w.sampler.num_running_rows, "waiting": w.sampler.num_waiting}),
            "state",
        )
        gauge(
            "kv_blocks",
            "KV blocks of 16 tokens: held by rows, holding prefixes known from before, or free.",
            of(lambda w: w.sampler.kv_blocks),
            "state",
        )
        counter(
            "preemptions",
            "Rows that lost their KV memory to others.",
            of(lambda w: w.sampler.num_preemptions),
        )
        counter("decode_steps", "Steps of the sampler.", of(lambda w: w.sampler.num_steps))
        counter(
            "decoded_rows",
            "Rows that got a token in these; over decode_steps, how full the batch is.",
            of(lambda w: w.sampler.num_decoded_rows),
        )
        counter(
            "prefilled_tokens",
            "Prompt tokens computed in these, for preempted rows once more.",
            of(lambda w: w.sampler.num_prefilled_tokens),
        )
        counter(
            "microbatches",
            "Packed forwards, with or without a backward.",
            of(lambda w: w.engine.num_microbatches),
        )
        counter(
            "microbatch_tokens",
            "Tokens computed in these; over microbatches and their bound, how full they are.",
            of(lambda w: w.engine.num_microbatch_tokens),
        )
        gauge(
            "microbatch_max_tokens",
            "Bound on the tokens of one.",
            of(lambda w: w.engine.max_tokens_per_microbatch),
        )
        counter(
            "packed_failures",
            "Passes that failed packed and were run again one by one, block by block.",
            of(lambda w: w.engine.packed_failures),
            "reason",
        )
        gauge(
            "planned_tokens_per_second",
            "Trained tokens per second of recent cycles, which plans count on.",
            of(lambda w: w.engine.tokens_per_s),
        )
        gauge(
            "device_memory_bytes",
            "Memory of the GPU: in use, kept for later, and all of it.",
            of(lambda w: _device_bytes(w.engine.base_model.device)),
            "state",
        )

    def _of(self, read: Callable[[Watched], Reading]) -> Callable[[], Reading]:
        return lambda: read(self._watched) if self._watched else {}

    def watch(self, watched: Watched) -> None:
        """Have what these know be read from now on."""
        self._watched = watched

    def cycle_ended(self, phases: Phases, num_tokens: int) -> None:
        """Note a cycle, and the tokens through its passes."""
        self._cycle_s.observe(phases.total_s)
        for phase in Phase:
            self._phase_s.labels(phase).observe(phases.seconds.get(phase, 0.0))
        self._pass_tokens.inc(num_tokens)

    def settled(
        self,
        kind: OperationKind,
        tenant_id: str,
        outcome: Outcome,
        reply: SettleOutcome,
        *,
        latency_s: float | None,
        metered: Mapping[Meter, int],
    ) -> None:
        """Count an operation that is final now; asked for again, it counts once.

        Args:
            kind: of the operation.
            tenant_id: whose it is.
            outcome: how it ended.
            reply: what the store said.
            latency_s: seconds since its submission; None when that is not known.
            metered: what it used, if it succeeded.
        """
        if reply is SettleOutcome.ALREADY:
            return
        error = outcome.error
        self._settled.labels(kind, "failed" if error else "done").inc()
        if error is not None:
            self._failed.labels(kind, error.category).inc()
        else:
            label = self._tenants.of(tenant_id)
            for meter, num_tokens in metered.items():
                self._tokens.labels(label, meter).inc(num_tokens)
        if latency_s is not None:
            self._operation_s.labels(kind).observe(latency_s)

    def snapshot_written(self, duration_s: float) -> None:
        self._snapshot_s.observe(duration_s)

    def snapshot_failed(self) -> None:
        self._snapshots_failed.inc()

    def restored(self, duration_s: float, num_replayed: int) -> None:
        """Note a state that is in memory again."""
        self._restore_s.observe(duration_s)
        self._replayed.inc(num_replayed)

    def evicted(self) -> None:
        self._evicted.inc()


def latency_s(submitted_at_ms: int, now_ms: int) -> float | None:
    """Seconds since a submission; None when its time is not known."""
    return max(0, now_ms - submitted_at_ms) / 1000 if submitted_at_ms else None


def _device_bytes(device: torch.device) -> Reading:
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }
