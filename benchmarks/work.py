"""What tenants train on in the benchmarks, and one step of it by the engine itself."""

from __future__ import annotations

import itertools
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


Work = Sequence[PassBody]
"""One forward_backward of each tenant."""


def random_data(
    num_data: int, vocab_size: int, seed: int = 0, *, total: int | None = None
) -> list[Datum]:
    """cross_entropy data of random lengths and tokens; ``total``: of so many tokens together."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(MIN_TOKENS, MAX_TOKENS + 1, num_data)
    if total is not None:
        assert MIN_TOKENS * num_data <= total <= MAX_TOKENS * num_data
        while (missing := total - lengths.sum()) != 0:
            one = rng.integers(num_data)
            lengths[one] = np.clip(lengths[one] + missing, MIN_TOKENS, MAX_TOKENS)
    made: list[Datum] = []
    for length in lengths:
        ids = rng.integers(0, vocab_size, length + 1)
        inputs = {"target_tokens": ids[1:], "weights": np.ones(length, np.float32)}
        made.append(Datum(ids[:-1].astype(np.int32), inputs))
    return made


def dealt(data: Sequence[Datum], num_tenants: int) -> Work:
    """One forward_backward for each tenant, of equally many of the data."""
    each = len(data) // num_tenants
    return [
        PassBody("cross_entropy", {}, data[i * each : (i + 1) * each]) for i in range(num_tenants)
    ]


def num_tokens(work: Work) -> int:
    return sum(len(datum.tokens) for body in work for datum in body.data)


def engine_step(base_model: BaseModel, works: Sequence[Work]) -> Callable[[], None]:
    """One step of every tenant as a clock cycle does it: shared passes, then the optimizer.

    Each call takes the next of the works, and the first behind the last.
    """
    states = [
        AdapterState.create(base_model, LoraConfig(rank, seed=i))
        for i, rank in enumerate(ranks(len(works[0])))
    ]
    turns = itertools.cycle([_items(states, work) for work in works])

    def step() -> None:
        _run(base_model, next(turns))
        for state in states:
            optimizer_step(state, OptimStepBody())

    return step


def bare_pass(base_model: BaseModel, works: Sequence[Work]) -> Callable[[], None]:
    """The same passes with no adapter to speak of, and no optimizer step.

    One adapter of rank 1 on the first target module, the first layer's query projection, makes the
    backward pass go as deep as it does with full adapters.
    """
    config = LoraConfig(1)
    layout = AdapterLayout(base_model.target_modules[:1], config)
    state = AdapterState(config, layout, base_model.dtype, base_model.device)
    turns = itertools.cycle([_items([state] * len(work), work) for work in works])

    def run() -> None:
        _run(base_model, next(turns))
        state.gradient_P.zero_()
        state.num_accumulated_passes = 0

    return run


def _items(states: Sequence[AdapterState], work: Work) -> list[PassItem]:
    return [
        PassItem(f"r{i}", state, body, True)
        for i, (state, body) in enumerate(zip(states, work, strict=True))
    ]


def _run(base_model: BaseModel, items: Sequence[PassItem]) -> None:
    passes = PackedPasses(base_model, items, max_tokens_per_microbatch=MAX_TOKENS_PER_MICROBATCH)
    for _ in passes:
        pass
    passes.results()
