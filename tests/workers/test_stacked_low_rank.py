"""Stacked adapters give each row the bits of its own segment's products.

Legend: T packed tokens, D features in, F features out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cyclora_core.operations import LoraConfig
from cyclora_workers import stacked_low_rank
from cyclora_workers.adapter import AdapterLayout, AdapterWeights, ModuleGroup, TargetModule
from cyclora_workers.context import ROW_ALIGNMENT, Segment
from cyclora_workers.low_rank import add_low_ranks_
from cyclora_workers.rows import HAS_ONEDNN, with_aligned_rows
from cyclora_workers.stacked_low_rank import (
    AdapterStack,
    StackCache,
    StackedLowRank,
    can_stack,
)
from parity.tolerances import FORWARD, close

SIZES = ((64, 48), (48, 80), (256, 640), (640, 256), (1008, 61))


def adapter(
    rank: int,
    size: tuple[int, int] = (64, 48),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **flags: bool,
) -> AdapterWeights:
    modules = [
        TargetModule("layer", *size, ModuleGroup.MLP),
        TargetModule("elsewhere", *size, ModuleGroup.ATTN),
    ]
    layout = AdapterLayout(modules, LoraConfig(rank, **{"train_unembed": False, **flags}))
    generator = torch.Generator().manual_seed(seed)
    flat_P = torch.randn(layout.num_elements, generator=generator) * 0.3
    return layout.weights(flat_P.to(dtype), None)


def aligned(num_rows: int) -> int:
    return -(-num_rows // ROW_ALIGNMENT) * ROW_ALIGNMENT


def pack(sizes: Sequence[tuple[AdapterWeights | None, int]]) -> list[Segment]:
    segments: list[Segment] = []
    for weights, num_rows in sizes:
        start = segments[-1].stop if segments else 0
        segments.append(Segment(start, start + num_rows, weights))
    return segments


def random_pack(rng: random.Random, size: tuple[int, int]) -> list[Segment]:
    def weights(seed: int) -> AdapterWeights | None:
        rank = rng.choice((1, 2, 3, 5, 8, 8, 8, 16, 32, 64))
        kind = rng.randrange(8)
        return None if kind == 0 else adapter(rank, size, seed=seed, train_mlp=kind != 1)

    return pack([(weights(seed), rng.choice((1, 1, 2, 4, 31, 40))) for seed in range(20)])


def low_ranks(
    x_TD: Tensor, num_outputs: int, segments: Sequence[Segment], stacked: StackedLowRank | None
) -> Tensor:
    y_TF = with_aligned_rows(torch.ones(x_TD.shape[0], num_outputs))
    add_low_ranks_(y_TF, x_TD, "layer", segments, stacked)
    return y_TF[: segments[-1].stop]


def stacked_over(segments: Sequence[Segment]) -> StackedLowRank:
    weights = {s.adapter: None for s in segments if s.adapter and can_stack(s.adapter)}
    return StackedLowRank(AdapterStack(list(weights)), segments, aligned(segments[-1].stop))


@pytest.mark.parametrize("size", SIZES)
def test_stacked_adapters_give_the_bits_of_a_product_per_segment(
    size: tuple[int, int], num_threads: int
) -> None:
    rng = random.Random(num_threads)
    for _ in range(10):
        segments = random_pack(rng, size)
        x_TD = with_aligned_rows(torch.randn(aligned(segments[-1].stop), size[0]))

        together = low_ranks(x_TD, size[1], segments, stacked_over(segments))

        assert torch.equal(together, low_ranks(x_TD, size[1], segments, None))


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("ranks", [(8, *[32] * 16), (128, 24, 40) * 6, (64,) * 20])
def test_more_adapters_than_a_stack_holds_have_the_bits_of_their_segments(
    ranks: tuple[int, ...],
) -> None:
    size = (64, 80)
    segments = pack([(adapter(rank, size, seed=i), 1) for i, rank in enumerate(ranks)])
    x_TD = torch.randn(aligned(len(ranks)), size[0])
    stacked = StackCache().over(segments)

    together = low_ranks(x_TD, size[1], segments, stacked)

    assert (stacked is None) == (not HAS_ONEDNN)
    assert torch.equal(together, low_ranks(x_TD, size[1], segments, None))


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("rank", [2, 3, 8, 32])
def test_a_single_stacked_adapter_gives_the_bits_of_its_segment(
    rank: int,
) -> None:
    for num_rows in (1, 7, 31, 32, 40, 300):
        segments = pack([(None, 3), (adapter(rank, (256, 640)), num_rows)])
        x_TD = torch.randn(aligned(segments[-1].stop), 256)

        together = low_ranks(x_TD, 640, segments, stacked_over(segments))

        assert torch.equal(together, low_ranks(x_TD, 640, segments, None))


def test_stacked_adapters_add_what_plain_products_add() -> None:
    segments = pack([(adapter(8), 3), (None, 2), (adapter(4, seed=1), 20)])
    x_TD = torch.randn(32, 64)

    found = low_ranks(x_TD, 48, segments, stacked_over(segments))

    expected = torch.ones(25, 48)
    for segment in (segments[0], segments[2]):
        rows = slice(segment.start, segment.stop)
        assert segment.adapter is not None
        module = segment.adapter.modules["layer"]
        low = x_TD[rows] @ module.lora_A_RD.T @ module.lora_B_FR.T
        expected[rows] += segment.adapter.scaling * low
    close(found, expected, FORWARD[torch.float32])


@pytest.mark.skipif(not HAS_ONEDNN, reason="nothing is stacked without oneDNN")
def test_what_would_change_bits_is_not_stacked() -> None:
    diverged = adapter(8)
    diverged.flat_P[-1] = float("inf")

    assert can_stack(adapter(8))
    assert not can_stack(diverged)
    assert not can_stack(adapter(1))
    assert not can_stack(adapter(8, (1003, 64)))
    assert not can_stack(adapter(8, dtype=torch.bfloat16))


def test_rows_that_overflow_under_one_adapter_leave_the_others_finite() -> None:
    """Each row meets all adapters before it is left its own."""
    huge = adapter(8)
    huge.flat_P.mul_(1e38)
    segments = pack([(huge, 4), (adapter(8, seed=1), 4)])
    x_TD = torch.full((32, 64), 10.0)

    together = low_ranks(x_TD, 48, segments, stacked_over(segments))

    assert not together[:4].isfinite().all()
    assert torch.equal(together[4:], low_ranks(x_TD, 48, segments, None)[4:])


@pytest.mark.skipif(not HAS_ONEDNN, reason="nothing is stacked without oneDNN")
class TestCache:
    def test_the_next_pass_over_the_same_adapters_copies_nothing(self) -> None:
        cache, segments = StackCache(), pack([(adapter(8, seed=i), 1) for i in range(4)])
        first = cache.over(segments)
        second = cache.over(segments[:3])

        assert first is not None
        assert second is not None
        assert first.stack is second.stack

    def test_a_stack_mostly_of_adapters_that_left_is_made_anew(self) -> None:
        cache, segments = StackCache(), pack([(adapter(8, seed=i), 1) for i in range(8)])
        cache.over(segments)
        later = cache.over(segments[:2])

        assert later is not None
        assert list(later.stack.columns) == [s.adapter for s in segments[:2]]

    def test_a_part_of_a_pass_keeps_the_stack_of_the_whole(self) -> None:
        cache, segments = StackCache(), pack([(adapter(8, seed=i), 1) for i in range(8)])
        whole = cache.over(segments)
        part = cache.over(segments[:2], may_shrink=False)

        assert whole is not None
        assert part is not None
        assert part.stack is whole.stack

    @pytest.mark.parametrize("max_bytes", [1_000, 60_000, 10**9])
    def test_copies_keep_their_bound(self, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stacked_low_rank, "_MAX_STACK_BYTES", max_bytes)
        few, many = (adapter(2, seed=i, train_attn=i > 3) for i in (0, 4)), range(1, 9)
        weights = [*few, *(adapter(2, seed=i, train_mlp=i != 2) for i in many)]
        stacked = StackCache().over(pack([(each, 1) for each in weights]))

        modules = [stacked.stack.module(n) for n in ("layer", "elsewhere")] if stacked else []
        held = sum(
            copy.untyped_storage().nbytes()
            for module in modules
            if module is not None
            for copy in (module.lora_A_KD, module.lora_B_FK)
        )
        assert held <= max_bytes
        assert (held > 0) == (max_bytes > 1_000)

    def test_one_adapter_is_used_where_it_lies(self) -> None:
        weights = adapter(8)
        stacked = StackCache().over(pack([(weights, 4)]))

        assert stacked is not None
        module = stacked.stack.module("layer")
        assert module is not None
        assert module.lora_A_KD is weights.modules["layer"].lora_A_RD
        assert module.lora_B_FK is weights.modules["layer"].lora_B_FR

    def test_no_adapter_or_long_segments_of_several_are_left_alone(self) -> None:
        cache, first, second = StackCache(), adapter(64), adapter(64, seed=1)

        assert cache.over(pack([(None, 4), (adapter(1), 4)])) is None
        assert cache.over(pack([(first, 512), (second, 512)])) is None
        assert cache.over(pack([(first, 4), (second, 4)])) is not None
