"""What a worker computes: adapters by model, steps on them, and the samples that are running.

Synchronous, and called from one thread only. It knows neither the store nor the clock cycle;
``executor`` feeds it and settles what comes out.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cyclora_core.errors import ServerError, UserError
from cyclora_core.operations import (
    DimuonStepBody,
    LoraConfig,
    OptimStepBody,
    PassBody,
    PassResult,
)
from cyclora_core.optimizers import OptimizerType
from cyclora_core.payload import Array
from cyclora_core.samples import SampleBody
from cyclora_core.types import DatumRange
from cyclora_workers import checkpoint
from cyclora_workers.adapter import AdapterState, AdapterWeights, FrozenWeights, GradientMark
from cyclora_workers.base_model import BaseModel
from cyclora_workers.metric_terms import MetricTerms, joined, reduced
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.pass_blocks import PassItem
from cyclora_workers.passes import PackedPasses
from cyclora_workers.sampling.sampler import FinishedSample, Sampler

_SPEED_SMOOTHING = 0.3


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward or forward_backward, or the part of it that this cycle runs."""

    request_id: str
    model_id: str
    body: PassBody
    needs_gradient: bool
    datum_range: DatumRange | None = None
    is_replay: bool = False

    @property
    def range(self) -> DatumRange:
        return self.datum_range or DatumRange(0, len(self.body.data))

    @property
    def is_last_part(self) -> bool:
        return self.range.stop == len(self.body.data)


@dataclass(slots=True)
class _Part:
    """What earlier cycles computed of a pass that is spread over several."""

    model_id: str
    mark: GradientMark
    logprobs: list[Array] = field(default_factory=list[Array])
    terms: MetricTerms = field(default_factory=dict[str, list[float]])


PassOutcome = PassResult | Exception | None
"""A result, why it failed, or None when more parts are to come."""


class Engine:
    """The base model with every adapter and sample that is on this worker."""

    def __init__(
        self,
        base_model: BaseModel,
        sampler: Sampler,
        *,
        max_tokens_per_microbatch: int,
        decode_steps_per_microbatch: int,
        max_cached_samplers: int,
        max_kept_tokens: int | None = None,
    ) -> None:
        self.base_model = base_model
        self.sampler = sampler
        self.tokens_per_s = 0.0
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        self.num_microbatches = 0
        self.num_microbatch_tokens = 0
        self.packed_failures = {"out_of_memory": 0, "error": 0}
        """How often passes failed packed and had to run alone, by the reason."""
        self._decode_steps_per_microbatch = decode_steps_per_microbatch
        self._max_cached_samplers = max_cached_samplers
        self._max_kept_tokens = max_kept_tokens
        self._adapters: dict[str, AdapterState] = {}
        self._parts: dict[str, _Part] = {}
        self._sampler_weights: OrderedDict[Path, AdapterWeights] = OrderedDict()
        self._pinned: set[Path] = set()

    def create(
        self,
        model_id: str,
        lora: LoraConfig,
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> None:
        self._adapters[model_id] = AdapterState.create(self.base_model, lora, optimizer_type)

    def _adapter(self, model_id: str) -> AdapterState:
        if model_id not in self._adapters:
            raise UserError(
                f"model {model_id!r} has no adapter: creating it failed, or it was unloaded"
            )
        return self._adapters[model_id]

    def has(self, model_id: str) -> bool:
        return model_id in self._adapters

    def num_bytes(self, model_id: str) -> int:
        """Memory that a model's state takes; 0 when it is not here."""
        state = self._adapters.get(model_id)
        return state.num_bytes if state else 0

    def adapter_bytes(self) -> list[int]:
        """Memory of each state that is here; may be asked for in any thread."""
        return [state.num_bytes for state in list(self._adapters.values())]

    @property
    def num_sampler_weights(self) -> int:
        """Adapter weights kept for samples."""
        return len(self._sampler_weights)

    def drop(self, model_id: str) -> None:
        """Forget a model's state; it is restored from snapshot and log when needed again."""
        self._adapters.pop(model_id, None)
        self._parts = {r: part for r, part in self._parts.items() if part.model_id != model_id}

    def has_part_of(self, model_id: str) -> bool:
        """Whether a pass of the model is spread over cycles and not complete yet."""
        return any(part.model_id == model_id for part in self._parts.values())

    def undo_parts_of(self, model_id: str) -> None:
        """Take back what a pass that is not complete has accumulated; it begins anew later."""
        for request_id, part in list(self._parts.items()):
            if part.model_id == model_id:
                self._adapter(model_id).restore_gradient(part.mark)
                del self._parts[request_id]

    def load(
        self,
        model_id: str,
        lora: LoraConfig,
        folder: Path,
        *,
        optimizer: bool,
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> None:
        """Replace a model's adapter weights, and its optimizer state or a fresh one.

        Raises:
            UserError: the checkpoint does not fit the adapter; the model is as it was then.
        """
        state = AdapterState.empty(self.base_model, lora, optimizer_type)
        checkpoint.load_checkpoint(state, folder, with_optimizer=optimizer)
        self._adapters[model_id] = state

    def save(
        self, model_id: str, folder: Path, *, optimizer: bool, age_recipients: Sequence[str] = ()
    ) -> int:
        """Write a checkpoint as a PEFT folder, perhaps encrypted; returns its size in bytes."""
        return checkpoint.save_checkpoint(
            self._adapter(model_id),
            self.base_model,
            folder,
            with_optimizer=optimizer,
            age_recipients=age_recipients,
        )

    def export_state(self, model_id: str) -> dict[str, Tensor]:
        """A copy of a model's complete state, which further training leaves as it is."""
        return self._adapter(model_id).export_tensors()

    def import_state(
        self,
        model_id: str,
        lora: LoraConfig,
        tensors: Mapping[str, Tensor],
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> None:
        """Inverse of ``export_state``."""
        state = AdapterState.empty(self.base_model, lora, optimizer_type)
        state.import_tensors(tensors)
        self._adapters[model_id] = state

    def optim_step(
        self, model_id: str, body: OptimStepBody | DimuonStepBody
    ) -> Mapping[str, float]:
        return optimizer_step(self._adapter(model_id), body)

    def run_passes(self, passes: Sequence[Pass]) -> Iterator[dict[str, PassOutcome]]:
        """Run the passes of all models packed together.

        Yields an empty dict after each microbatch, so that samples and other work can go on in
        between, and at last the outcome of every pass. If the packed run fails, for want of memory
        or otherwise, every operation is run again alone, block by block, which gives the same
        numbers; so only the guilty one fails.
        """
        started_s = time.perf_counter()
        packed: PackedPasses | None = None
        outcomes: dict[str, PassOutcome]
        try:
            for each in passes:
                self._part_of(each)
            packed = self._packed(passes)
            num_tokens = 0
            for size in packed:
                num_tokens += size
                self.num_microbatches += 1
                self.num_microbatch_tokens += size
                yield {}
            results, terms = packed.results(), packed.terms()
        except Exception as error:  # noqa: BLE001 - boundary: one tenant must not fail the cycle
            is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
            self.packed_failures["out_of_memory" if is_memory else "error"] += 1
            if packed is not None:
                packed.rollback()
            outcomes = {each.request_id: self._run_alone(each) for each in passes}
        else:
            # Models with a failed pass begin anew; the gradients of the others hold none of it.
            failed = packed.failures()
            guilty = {each.model_id for each in passes if each.request_id in failed}
            packed.rollback([self._adapter(model_id) for model_id in guilty])
            outcomes = {
                p.request_id: self._run_alone(p)
                if p.model_id in guilty
                else self._finish_part(p, results[p.request_id], terms[p.request_id])
                for p in passes
            }
            self._measure(num_tokens, time.perf_counter() - started_s)
        yield outcomes

    def _run_alone(self, one: Pass) -> PassOutcome:
        if one.range.start == 0:
            # Undoing this pass must not undo those of its model that ran alone just before it.
            self._parts.pop(one.request_id, None)
        try:
            self._part_of(one)
            # Block by block, and layer by layer: what did not fit into memory packed may fit alone.
            packed = self._packed([one], max_tokens_per_microbatch=1, max_kept_tokens=0)
            for _ in packed:
                pass
            request_id = one.request_id
            if failure := packed.failures().get(request_id):
                raise failure
            return self._finish_part(one, packed.results()[request_id], packed.terms()[request_id])
        except Exception as error:  # noqa: BLE001 - boundary: returned as this operation's outcome
            part = self._parts.pop(one.request_id, None)
            if part is not None:
                self._adapter(one.model_id).restore_gradient(part.mark)
            return error

    def _packed(
        self,
        passes: Sequence[Pass],
        max_tokens_per_microbatch: int | None = None,
        max_kept_tokens: int | None = None,
    ) -> PackedPasses:
        items = [
            PassItem(
                each.request_id,
                self._adapter(each.model_id),
                each.body,
                each.needs_gradient,
                each.datum_range,
                each.is_replay,
            )
            for each in passes
        ]
        max_tokens = max_tokens_per_microbatch or self.max_tokens_per_microbatch
        if max_kept_tokens is None:
            max_kept_tokens = self._max_kept_tokens
        return PackedPasses(
            self.base_model,
            items,
            max_tokens_per_microbatch=max_tokens,
            max_kept_tokens=max_kept_tokens,
        )

    def _part_of(self, one: Pass) -> _Part:
        """The record of a pass in progress; a first part begins a new one.

        Raises:
            ServerError: the part does not go on where the last one ended.
        """
        adapter = self._adapter(one.model_id)
        if one.range.start == 0:
            earlier = self._parts.pop(one.request_id, None)
            if earlier is not None and earlier.logprobs:
                adapter.restore_gradient(earlier.mark)  # begun before, begun anew
            self._parts[one.request_id] = _Part(one.model_id, adapter.mark_gradient())
        part = self._parts.get(one.request_id)
        if part is None or len(part.logprobs) != one.range.start:
            raise ServerError(f"{one.request_id} does not go on at datum {one.range.start}")
        return part

    def _finish_part(self, one: Pass, result: PassResult, terms: MetricTerms) -> PassResult | None:
        part = self._parts[one.request_id]
        part.logprobs += result.logprobs
        part.terms = joined(part.terms, terms)
        if not one.is_last_part:
            return None
        del self._parts[one.request_id]
        return PassResult(part.logprobs, reduced(part.terms))

    def _measure(self, num_tokens: int, duration_s: float) -> None:
        speed = num_tokens / max(duration_s, 1e-6)
        old = self.tokens_per_s or speed
        self.tokens_per_s = old + _SPEED_SMOOTHING * (speed - old)

    def freeze_for_sampling(self, model_id: str, folder: Path) -> FrozenWeights:
        """Keep a model's adapter weights as they are for samples of a checkpoint's folder."""
        state = self._adapter(model_id)
        frozen = FrozenWeights(state.layout, state.snapshot_weights())
        self._remember(folder, frozen.weights)
        return frozen

    def pin(self, folder: Path) -> None:
        """Keep weights for samples however many others there are: they cannot be read again yet."""
        self._pinned.add(folder)

    def unpin(self, folder: Path) -> None:
        """Treat weights like all others again; their files are in storage, or not needed."""
        self._pinned.discard(folder)

    def has_sampler_weights(self, folder: Path) -> bool:
        """Whether samples of a checkpoint's folder need no file."""
        return folder in self._sampler_weights

    def write_frozen(self, frozen: FrozenWeights, folder: Path) -> int:
        """Write frozen weights as a checkpoint; unlike all else here, in any thread."""
        return checkpoint.save_frozen(frozen, self.base_model, folder)

    def admit(
        self,
        request_id: str,
        body: SampleBody,
        lora: LoraConfig | None,
        folder: Path | None,
        tenant_id: str = "",
    ) -> None:
        """Queue a sample; its adapter weights are read from ``folder`` unless they are at hand.

        ``lora`` and ``folder`` None sample the bare base model.

        Raises:
            UserError: the sample can never run here, or its checkpoint is gone.
        """
        adapter = None
        if lora is not None and folder is not None:
            adapter = self._sampler_weights.get(folder)
            if adapter is None:
                state = AdapterState.empty(self.base_model, lora)
                checkpoint.load_checkpoint(state, folder, with_optimizer=False)
                adapter = state.snapshot_weights()
            self._remember(folder, adapter)
        self.sampler.admit(request_id, body, adapter, tenant_id)

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Let go of samples and their memory; those that ended are ended already."""
        for request_id in request_ids:
            self.sampler.cancel(request_id)

    def _remember(self, folder: Path, weights: AdapterWeights) -> None:
        replaced = [f for f in self._sampler_weights if f.parent == folder.parent and f != folder]
        for revision in replaced:  # running samples hold what they began with themselves
            del self._sampler_weights[revision]
        self._sampler_weights[folder] = weights
        self._sampler_weights.move_to_end(folder)
        surplus = len(self._sampler_weights) - self._max_cached_samplers
        unpinned = [each for each in self._sampler_weights if each not in self._pinned]
        for oldest in unpinned[: max(surplus, 0)]:
            del self._sampler_weights[oldest]

    def decode_between_microbatches(self) -> list[FinishedSample]:
        """Let running samples go on while training has the worker."""
        return self.decode(self._decode_steps_per_microbatch)

    def decode(self, max_steps: int) -> list[FinishedSample]:
        """Run decode steps until something finishes or ``max_steps`` are done."""
        for _ in range(max_steps):
            if self.sampler.is_idle:
                break
            finished = self.sampler.step()
            if finished:
                return finished
        return []
