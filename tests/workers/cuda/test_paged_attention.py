"""Attention to paged keys and values against one query after another over contiguous ones.

Legend: T packed tokens, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cyclora_workers.cuda import paged_attention, span_table
from cyclora_workers.cuda.paged_attention import PagedAttention
from cyclora_workers.cuda.span_table import PagedShape
from cyclora_workers.sampling.step_rows import PagedSpan
from parity.tolerances import FORWARD, close
from workers.cuda.references import attend_row

SCALING = 0.3
HEAD_SIZE = 24
"""No power of 2."""


@dataclass
class Pool:
    """Two layers of blocks, scattered over more memory than they fill."""

    keys: Tensor
    values: Tensor
    block_tokens: int

    @classmethod
    def drawn(
        cls, num_kv_heads: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> Pool:
        generator = torch.Generator().manual_seed(3)
        size = (2, 64, block_tokens, num_kv_heads, HEAD_SIZE)
        keys = torch.randn(size, generator=generator).to(device, dtype)
        values = torch.randn(size, generator=generator).to(device, dtype)
        return cls(keys, values, block_tokens)

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        return self.keys[layer_index], self.values[layer_index]

    def of_sequence(self, layer_index: int, block_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence in order, [tokens, G, H] each."""
        chosen = torch.tensor(block_ids, device=self.keys.device)
        keys, values = self.keys[layer_index][chosen], self.values[layer_index][chosen]
        return keys.flatten(0, 1), values.flatten(0, 1)


def heads(
    num_rows: int, num_heads: int, num_kv_heads: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Laid out as a model lays them out: tokens first in memory."""
    generator = torch.Generator().manual_seed(4)

    def drawn(count: int) -> Tensor:
        rows_TNH = torch.randn(num_rows, count, HEAD_SIZE, generator=generator)
        return rows_TNH.to(device, dtype).transpose(0, 1)

    return drawn(num_heads), drawn(num_kv_heads), drawn(num_kv_heads)


def expected(
    pool: Pool,
    spans: Sequence[PagedSpan],
    query_NTH: Tensor,
    window: int | None,
    sinks_N: Tensor | None = None,
) -> Tensor:
    """Read from the pool after the plan has written to it."""
    out_TNH = torch.zeros(query_NTH.transpose(0, 1).shape, device=query_NTH.device)
    for span in spans:
        keys, values = pool.of_sequence(1, span.blocks)
        for row in range(span.start, span.stop):
            end = span.first_position + row - span.start + 1
            out_TNH[row] = attend_row(
                query_NTH[:, row], keys[:end], values[:end], SCALING, window, sinks_N
            )
    return out_TNH


def set_part_tokens(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> None:
    for module in (span_table, paged_attention):
        monkeypatch.setattr(module, "PART_TOKENS", num_tokens)


DECODES = [
    PagedSpan(0, 1, 0, [9]),
    PagedSpan(1, 2, 7, [3]),
    PagedSpan(2, 3, 8, [5, 1]),
    PagedSpan(3, 4, 41, [2, 60, 7, 8, 30, 31]),
]
MIXED = [
    PagedSpan(0, 13, 0, [4, 6]),
    PagedSpan(13, 14, 20, [11, 10, 12]),
    PagedSpan(14, 40, 5, [20, 22, 21, 23]),
]


@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (2, 2), (6, 1)])
@pytest.mark.parametrize("spans", [DECODES, MIXED], ids=["decodes", "mixed"])
def test_paged_attention_equals_one_query_after_another(
    kernel_device: torch.device,
    spans: Sequence[PagedSpan],
    num_heads: int,
    num_kv_heads: int,
    window: int | None,
) -> None:
    dtype = torch.float32
    pool = Pool.drawn(num_kv_heads, 8, dtype, kernel_device)
    num_rows = spans[-1].stop + 3
    query, key, value = heads(num_rows, num_heads, num_kv_heads, dtype, kernel_device)
    plan = PagedAttention.of(pool, spans, num_heads // num_kv_heads, kernel_device)

    out_TNH = plan.attend(1, query, key, value, SCALING, window)

    close(out_TNH, expected(pool, spans, query, window), FORWARD[dtype])


def test_half_precision_rounds_no_more_than_its_inputs(
    kernel_device: torch.device, kernel_dtype: torch.dtype
) -> None:
    pool = Pool.drawn(2, 8, kernel_dtype, kernel_device)
    query, key, value = heads(4, 4, 2, kernel_dtype, kernel_device)
    plan = PagedAttention.of(pool, DECODES, 2, kernel_device)

    out_TNH = plan.attend(1, query, key, value, SCALING, None)

    assert out_TNH.dtype is kernel_dtype
    close(out_TNH, expected(pool, DECODES, query, None), FORWARD[kernel_dtype])


def test_keys_and_values_are_written_where_the_block_table_says(
    kernel_device: torch.device,
) -> None:
    pool = Pool.drawn(2, 8, torch.float32, kernel_device)
    before = pool.keys.clone()
    query, key, value = heads(4, 4, 2, torch.float32, kernel_device)

    PagedAttention.of(pool, DECODES, 2, kernel_device).attend(1, query, key, value, 1.0, None)

    for span in DECODES:
        keys, values = pool.of_sequence(1, span.blocks)
        assert torch.equal(keys[span.first_position], key[:, span.start])
        assert torch.equal(values[span.first_position], value[:, span.start])
    assert torch.equal(pool.keys[0], before[0])
    assert (pool.keys != before).flatten(2).any(-1).sum() == len(DECODES)


@pytest.mark.parametrize("part_tokens", [16, 1024])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("spans", [DECODES, MIXED], ids=["decodes", "mixed"])
def test_a_sink_is_a_key_of_value_zero(
    kernel_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    spans: Sequence[PagedSpan],
    window: int | None,
    part_tokens: int,
) -> None:
    set_part_tokens(monkeypatch, part_tokens)
    pool = Pool.drawn(2, 8, torch.float32, kernel_device)
    query, key, value = heads(spans[-1].stop, 4, 2, torch.float32, kernel_device)
    sinks_N = torch.tensor([0.5, -2.0, 3.0, 30.0], device=kernel_device)
    plan = PagedAttention.of(pool, spans, 2, kernel_device)

    out_TNH = plan.attend(1, query, key, value, SCALING, window, sinks_N)

    close(out_TNH, expected(pool, spans, query, window, sinks_N), FORWARD[torch.float32])


@pytest.mark.parametrize("window", [None, 9])
def test_parts_of_long_contexts_are_joined(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    set_part_tokens(monkeypatch, 16)
    pool = Pool.drawn(2, 8, torch.float32, kernel_device)
    query, key, value = heads(6, 4, 2, torch.float32, kernel_device)
    plan = PagedAttention.of(pool, DECODES, 2, kernel_device)

    out_TNH = plan.attend(1, query, key, value, SCALING, window)

    close(out_TNH, expected(pool, DECODES, query, window), FORWARD[torch.float32])
    assert out_TNH[4:].eq(0).all()


def test_a_row_gets_the_same_bits_beside_longer_ones(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_part_tokens(monkeypatch, 16)
    pool = Pool.drawn(2, 8, torch.float32, kernel_device)
    query, key, value = heads(4, 4, 2, torch.float32, kernel_device)
    alone = PagedAttention.of(pool, DECODES[:3], 2, kernel_device)
    beside = PagedAttention.of(pool, DECODES, 2, kernel_device)

    first_TNH = alone.attend(1, query, key, value, SCALING, None)
    second_TNH = beside.attend(1, query, key, value, SCALING, None)

    assert torch.equal(first_TNH[:3], second_TNH[:3])


def test_a_plan_with_room_to_spare_serves_one_pass_after_another(
    kernel_device: torch.device,
) -> None:
    pool = Pool.drawn(2, 8, torch.float32, kernel_device)
    query, key, value = heads(8, 4, 2, torch.float32, kernel_device)
    plan = PagedAttention(pool, 8, [PagedShape.decode(8, 64, 8)], 2, kernel_device)

    for spans in (DECODES, DECODES[:1], DECODES[:3]):
        plan.fill(spans)
        out_TNH = plan.attend(1, query, key, value, SCALING, None)

        close(out_TNH, expected(pool, spans, query, None), FORWARD[torch.float32])


def test_tables_follow_rows_that_grow_and_change_places(kernel_device: torch.device) -> None:
    """A table is only told what is new: a row's list of blocks grows, and never changes."""
    pool = Pool.drawn(2, 8, torch.float32, kernel_device)
    query, key, value = heads(2, 4, 2, torch.float32, kernel_device)
    plan = PagedAttention(pool, 2, [PagedShape.decode(2, 64, 8)], 2, kernel_device)
    growing, other = [9], [3, 20]
    plan.fill([PagedSpan(0, 1, 7, growing), PagedSpan(1, 2, 9, other)])
    growing.append(5)

    for blocks, positions in (((growing, other), (8, 10)), ((other, growing), (11, 9))):
        spans = [PagedSpan(row, row + 1, positions[row], blocks[row]) for row in range(2)]
        plan.fill(spans)
        out_TNH = plan.attend(1, query, key, value, SCALING, None)

        close(out_TNH, expected(pool, spans, query, None), FORWARD[torch.float32])


def test_a_sequence_without_blocks_for_its_tokens_is_our_fault() -> None:
    cpu = torch.device("cpu")
    pool = Pool.drawn(2, 8, torch.float32, cpu)

    with pytest.raises(AssertionError, match="blocks are missing"):
        PagedAttention.of(pool, [PagedSpan(0, 1, 8, [3])], 2, cpu)
