"""Memory is taken by need, taken back, and shared evenly among tenants."""

from __future__ import annotations

import random

import pytest
import torch

from cyclora_core.samples import SampleBody, SampleResult
from cyclora_workers.sampling.request import Row, SampleRequest
from cyclora_workers.sampling.waiting import (
    WaitingRows,
    held_blocks,
    row_to_preempt,
    row_to_yield,
)
from workers.sampling.builders import (
    TinyModel,
    adapter,
    bits,
    body,
    random_tokens,
    run_until_idle,
    sample,
    sampler,
)


def row(model: TinyModel, tenant_id: str, arrival: int, num_blocks: int = 0) -> Row:
    request = SampleRequest(
        f"r{arrival}", body([5]), None, model.base_model, None, tenant_id=tenant_id, arrival=arrival
    )
    request.rows[0].blocks = list(range(num_blocks))
    return request.rows[0]


def test_the_tenant_that_holds_least_comes_first_and_its_oldest_row(qwen3: TinyModel) -> None:
    waiting = WaitingRows()
    rows = [row(qwen3, tenant, i) for i, tenant in enumerate("aabbc")]
    for each in reversed(rows):
        waiting.add(each)

    order = [waiting.pop_next({"a": 3, "c": 1}) for _ in range(6)]

    assert order == [rows[2], rows[3], rows[4], rows[0], rows[1], None]


def test_rows_that_are_removed_never_come(qwen3: TinyModel) -> None:
    waiting = WaitingRows()
    rows = [row(qwen3, "a", i) for i in range(3)]
    for each in rows[:2]:
        waiting.add(each)

    waiting.remove(rows[1:])

    assert list(waiting) == rows[:1]
    assert waiting.pop_next({}) is rows[0]
    assert len(waiting) == 0


def test_the_newest_row_of_who_holds_most_makes_way(qwen3: TinyModel) -> None:
    running = [row(qwen3, "a", 0, 4), row(qwen3, "a", 2, 1), row(qwen3, "b", 3, 4)]

    assert held_blocks(running) == {"a": 5, "b": 4}
    assert row_to_preempt(running) is running[1]


@pytest.mark.parametrize(("num_blocks", "yields"), [(2, True), (3, True), (4, False)])
def test_nobody_yields_so_much_that_it_would_hold_less(
    qwen3: TinyModel, num_blocks: int, yields: bool
) -> None:
    running = [row(qwen3, "a", 0, 5), row(qwen3, "a", 1, 5), row(qwen3, "b", 2, 2)]

    found = row_to_yield(running, row(qwen3, "b", 9), num_blocks)

    assert found is (running[1] if yields else None)


def test_a_tenant_alone_does_not_yield_to_itself(qwen3: TinyModel) -> None:
    running = [row(qwen3, "a", 0, 9), row(qwen3, "a", 1, 9)]

    assert row_to_yield(running, row(qwen3, "a", 2), 1) is None


def test_long_samples_do_not_keep_a_small_tenant_out(qwen3: TinyModel) -> None:
    """320 tokens of memory; ten samples of up to 200 would have filled it for long."""
    shared = sampler(qwen3.base_model, max_kv_tokens=320)
    for i in range(10):
        shared.admit(f"long{i}", body(random_tokens(60, i), max_tokens=200, seed=i), None, "greedy")
    for _ in range(30):
        shared.step()
    shared.admit("small", body(random_tokens(20, 99), max_tokens=5), None, "small")

    finished = [f.request_id for _ in range(6) for f in shared.step()]

    assert finished == ["small"]
    assert shared.num_preemptions > 0


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_rows_that_made_way_have_the_bits_they_have_with_memory_for_all(
    qwen2: TinyModel, num_threads: int
) -> None:
    """Random requests of three tenants, in memory for two to four of them."""
    torch.set_num_threads(num_threads)
    rng = random.Random(num_threads)
    weights = [adapter(qwen2.base_model, 1), adapter(qwen2.base_model, 2, rank=9), None]
    num_preemptions = 0
    for trial in range(2):
        shared = sampler(qwen2.base_model, max_kv_tokens=rng.choice([208, 240]))
        requests: dict[str, SampleBody] = {}
        results: dict[str, SampleResult | Exception] = {}
        for i in range(6):
            requests[f"r{i}"] = body(
                random_tokens(rng.choice([3, 40, 130]), rng.randint(0, 2)),
                num_samples=rng.choice([1, 1, 4]),
                max_tokens=rng.choice([5, 30, 60]),
                seed=10 * trial + i,
                prompt_logprobs=rng.random() < 0.3,
                stop_token_ids=[8, 15] if rng.random() < 0.5 else [],
            )
            shared.admit(f"r{i}", requests[f"r{i}"], weights[i % 3], f"tenant-{i % 3}")
            for _ in range(rng.randint(0, 6)):
                results |= {f.request_id: f.result for f in shared.step()}
        results |= run_until_idle(shared)
        num_preemptions += shared.num_preemptions

        for i, (request_id, request) in enumerate(requests.items()):
            alone = sample(qwen2.base_model, request, weights[i % 3])
            assert bits(alone) == bits(results[request_id]), (trial, request_id)
        assert shared.free_kv_tokens == shared.max_kv_tokens
    assert num_preemptions > 3
