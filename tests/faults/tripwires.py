"""The worker's entry point with tripwires: it stops where the test armed it, and says so.

Production code has no switches for tests. ``main`` wraps methods of its classes from outside and
then runs the worker as it is. At an armed point the worker tells the test through a socket and
waits for an answer, so whoever is killed is killed while the worker stands exactly there.

=================  =========================================================================
before claim       the cycle that holds the operation was dispatched, not yet taken
after claim        the worker has the cycle and has computed nothing of it
in forward         half-way: a pass between two decoder layers; an optim_step with new
                   weights and old compute copies; a save with some of its files on disk; a
                   load whose state is filled and not in place; a sample in its third
                   decode step
after gradients    computed, and nobody else knows: gradients are accumulated, the step is
                   done, the files are complete without a record, the state is replaced, the
                   sample has ended
before settle      the outcome is about to be sent to the store
after settle       the store has it; the worker has not gone on, nor released the cycle
=================  =========================================================================

A save for a sampler is a hand-over here: in forward, its weights are frozen and the store does not
know; after gradients, it is noted and has no record. Its files are written at any time after that.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cyclora_core.operations import OperationKind
from cyclora_core.records import Checkpoint
from cyclora_core.store.checkpoints import Checkpoints
from cyclora_core.store.handovers import Handovers
from cyclora_core.store.operations import Operations
from cyclora_core.store.workers import Workers
from cyclora_core.types import Cycle
from cyclora_workers import __main__ as worker
from cyclora_workers.adapter import AdapterState
from cyclora_workers.architecture import decoder_layers
from cyclora_workers.base_model import BaseModel
from cyclora_workers.engine import Engine
from cyclora_workers.executor import Executor
from cyclora_workers.passes import PackedPasses
from cyclora_workers.sample_desk import SampleDesk
from cyclora_workers.sampling.sampler import FinishedSample, Sampler
from faults.points import ARMED_FILE, SOCKET_FILE, WIRE_FOLDER_VARIABLE, Kind, Point

_KINDS = {
    OperationKind.FORWARD_BACKWARD: Kind.FORWARD_BACKWARD,
    OperationKind.OPTIM_STEP: Kind.OPTIM_STEP,
    OperationKind.SAVE_WEIGHTS: Kind.SAVE,
    OperationKind.SAVE_WEIGHTS_FOR_SAMPLER: Kind.HAND_OVER,
    OperationKind.LOAD_WEIGHTS: Kind.LOAD,
}
_TRIPPED_LAYER = 1
_TRIPPED_DECODE_STEP = 3
_TRIPPED_FSYNC = 2

Real = Callable[..., Any]


def main() -> None:
    _install(_Wire(Path(os.environ[WIRE_FOLDER_VARIABLE])))
    worker.main()


class _Wire:
    """Where this worker stands, and whether the test wants to know."""

    def __init__(self, folder: Path) -> None:
        self._armed_file = folder / ARMED_FILE
        self._socket_path = str(folder / SOCKET_FILE)
        self.computing: Kind | None = None
        """What the engine's one thread is in the midst of, if that can be said."""
        self.num_fsyncs = 0
        self.num_decode_steps = 0

    def trip(self, point: Point, kind: Kind | None) -> None:
        """Wait for the test's answer, if it armed this."""
        if kind is None:
            return
        try:
            armed = self._armed_file.read_text()
        except FileNotFoundError:
            return
        if armed != f"{point}/{kind}":
            return
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._socket_path)
            message = {"point": point, "kind": kind, "pid": os.getpid()}
            connection.sendall(json.dumps(message).encode() + b"\n")
            connection.recv(1)

    def trip_each(self, point: Point, cycle: Cycle) -> None:
        kinds = {_KINDS.get(o.kind) for model in cycle.models for o in model.operations}
        for kind in sorted(each for each in kinds if each):
            self.trip(point, kind)
        if cycle.samples:
            self.trip(point, Kind.SAMPLE)

    @contextmanager
    def during(self, kind: Kind | None) -> Generator[None]:
        """Note what the engine is in the midst of."""
        self.computing = kind
        try:
            yield
        finally:
            self.computing = None


def _install(wire: _Wire) -> None:
    def wrap(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            return replacement(wire, real, *args, **options)

        setattr(owner, name, wrapped)

    wrap(Workers, "claim", _claim)
    wrap(Executor, "execute", _execute)
    wrap(BaseModel, "__init__", _init_base_model)
    wrap(PackedPasses, "__next__", _microbatch)
    wrap(PackedPasses, "results", _results)
    wrap(Engine, "optim_step", _optim_step)
    wrap(Engine, "load", _load)
    wrap(Engine, "save", _save)
    wrap(AdapterState, "refresh_weights", _refresh_weights)
    wrap(os, "fsync", _fsync)
    wrap(Checkpoints, "put", _put_checkpoint)
    wrap(Handovers, "begin", _begin_handover)
    wrap(Sampler, "step", _decode_step)
    wrap(SampleDesk, "settle", _settle_finished)
    wrap(Operations, "settle", _settle)
    wrap(Operations, "settle_sample", _settle_sample)


async def _claim(
    wire: _Wire, real: Real, self: Workers, worker_id: str, last_cycle_id: int, wait_s: float
) -> Cycle | None:
    """A claim only reads, so looking before the worker really claims changes nothing."""
    cycle = await real(self, worker_id, last_cycle_id, wait_s)
    if cycle is None:
        return None
    wire.trip_each(Point.BEFORE_CLAIM, cycle)
    return await real(self, worker_id, last_cycle_id, 0)


async def _execute(wire: _Wire, real: Real, self: Executor, cycle: Cycle) -> None:
    wire.trip_each(Point.AFTER_CLAIM, cycle)
    await real(self, cycle)


def _init_base_model(
    wire: _Wire, real: Real, self: BaseModel, name: str, model: Any, device: Any
) -> None:
    real(self, name, model, device)
    layer = decoder_layers(model.get_decoder())[_TRIPPED_LAYER]

    def before_layer(*_: Any) -> None:
        wire.trip(Point.IN_FORWARD, wire.computing)

    layer.register_forward_pre_hook(before_layer)


def _microbatch(wire: _Wire, real: Real, self: PackedPasses) -> int:
    # A pass without a gradient would do for the same, but the scenario arms none.
    with wire.during(Kind.FORWARD_BACKWARD):
        return real(self)


def _results(wire: _Wire, real: Real, self: PackedPasses) -> Any:
    wire.trip(Point.AFTER_GRADIENTS, Kind.FORWARD_BACKWARD)
    return real(self)


def _optim_step(wire: _Wire, real: Real, *args: Any) -> Any:
    with wire.during(Kind.OPTIM_STEP):
        metrics = real(*args)
    wire.trip(Point.AFTER_GRADIENTS, Kind.OPTIM_STEP)
    return metrics


def _load(wire: _Wire, real: Real, *args: Any, **options: Any) -> None:
    with wire.during(Kind.LOAD):
        real(*args, **options)
    wire.trip(Point.AFTER_GRADIENTS, Kind.LOAD)


def _refresh_weights(wire: _Wire, real: Real, self: AdapterState) -> None:
    wire.trip(Point.IN_FORWARD, wire.computing)
    real(self)


def _save(wire: _Wire, real: Real, *args: Any, optimizer: bool, **options: Any) -> int:
    wire.num_fsyncs = 0
    with wire.during(Kind.SAVE if optimizer else None):
        return real(*args, optimizer=optimizer, **options)


def _fsync(wire: _Wire, real: Real, descriptor: int) -> None:
    real(descriptor)
    wire.num_fsyncs += 1
    if wire.computing is Kind.SAVE and wire.num_fsyncs == _TRIPPED_FSYNC:
        wire.trip(Point.IN_FORWARD, Kind.SAVE)


async def _put_checkpoint(
    wire: _Wire, real: Real, self: Checkpoints, checkpoint: Checkpoint
) -> bool:
    kind = Kind.SAVE if checkpoint.has_optimizer else Kind.HAND_OVER
    wire.trip(Point.AFTER_GRADIENTS, kind)
    recorded: bool = await real(self, checkpoint)
    return recorded


async def _begin_handover(wire: _Wire, real: Real, self: Handovers, *args: Any) -> None:
    wire.trip(Point.IN_FORWARD, Kind.HAND_OVER)
    await real(self, *args)


def _decode_step(wire: _Wire, real: Real, self: Sampler) -> list[FinishedSample]:
    wire.num_decode_steps = wire.num_decode_steps + 1 if self.num_running_rows else 0
    with wire.during(Kind.SAMPLE if wire.num_decode_steps == _TRIPPED_DECODE_STEP else None):
        return real(self)


async def _settle_finished(
    wire: _Wire, real: Real, self: SampleDesk, finished: Sequence[FinishedSample]
) -> None:
    if finished:
        wire.trip(Point.AFTER_GRADIENTS, Kind.SAMPLE)
    await real(self, finished)


async def _settle(wire: _Wire, real: Real, self: Operations, **options: Any) -> Any:
    kind = _KINDS.get(options["operation"].kind)
    wire.trip(Point.BEFORE_SETTLE, kind)
    outcome = await real(self, **options)
    wire.trip(Point.AFTER_SETTLE, kind)
    return outcome


async def _settle_sample(wire: _Wire, real: Real, self: Operations, **options: Any) -> Any:
    wire.trip(Point.BEFORE_SETTLE, Kind.SAMPLE)
    outcome = await real(self, **options)
    wire.trip(Point.AFTER_SETTLE, Kind.SAMPLE)
    return outcome
