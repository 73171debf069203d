"""What tenants train on in the benchmarks, and one step of it by the engine itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cyclora_core.operations import Datum, LoraConfig, OptimStepBody, PassBody
from cyclora_workers.adapter import AdapterLayout, AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.passes import PackedPasses, PassItem

RANKS = (8, 16, 32)
MIN_TOKENS, MAX_TOKENS = 32, 256
MAX_TOKENS_PER_MICROBATCH = 4096
"""The worker's default."""


def ranks(num_tenants: int) -> list[int]:
    """The lora_rank of each tenant."""
    return [RANKS[i % len(RANKS)] for i in range(num_tenants)]


def random_data(num_data: int, vocab_size: int, seed: int = 0) -> list[Datum]:
    """cross_entropy data of random lengths and tokens."""
    rng = np.random.default_rng(seed)
    made: list[Datum] = []
    for length in rng.integers(MIN_TOKENS, MAX_TOKENS + 1, num_data):
        ids = rng.integers(0, vocab_size, length + 1)
        inputs = {"target_tokens": ids[1:], "weights": np.ones(length, np.float32)}
        made.append(Datum(ids[:-1].astype(np.int32), inputs))
    return made


def dealt(data: Sequence[Datum], num_tenants: int) -> list[PassBody]:
    """One forward_backward for each tenant, of equally many of the data."""
    each = len(data) // num_tenants
    return [
        PassBody("cross_entropy", {}, data[i * each : (i + 1) * each]) for i in range(num_tenants)
    ]


def num_tokens(work: Sequence[PassBody]) -> int:
    return sum(len(datum.tokens) for body in work for datum in body.data)


def engine_step(base_model: BaseModel, work: Sequence[PassBody]) -> Callable[[], None]:
    """One step of every tenant as a clock cycle does it: shared passes, then the optimizer."""
    states = [
        AdapterState.create(base_model, LoraConfig(rank, seed=i))
        for i, rank in enumerate(ranks(len(work)))
    ]
    items = [
        PassItem(f"r{i}", state, body, True)
        for i, (state, body) in enumerate(zip(states, work, strict=True))
    ]

    def step() -> None:
        _run(base_model, items)
        for state in states:
            optimizer_step(state, OptimStepBody())

    return step


def bare_pass(base_model: BaseModel, work: Sequence[PassBody]) -> Callable[[], None]:
    """The same passes with no adapter to speak of, and no optimizer step.

    One adapter of rank 1 on the first target module, the first layer's query projection, makes the
    backward pass go as deep as it does with full adapters.
    """
    config = LoraConfig(1)
    layout = AdapterLayout(base_model.target_modules[:1], config)
    state = AdapterState(config, layout, base_model.dtype, base_model.device)
    items = [PassItem(f"r{i}", state, body, True) for i, body in enumerate(work)]

    def run() -> None:
        _run(base_model, items)
        state.gradient_P.zero_()
        state.num_accumulated_passes = 0

    return run


def _run(base_model: BaseModel, items: Sequence[PassItem]) -> None:
    passes = PackedPasses(base_model, items, max_tokens_per_microbatch=MAX_TOKENS_PER_MICROBATCH)
    for _ in passes:
        pass
    passes.results()
