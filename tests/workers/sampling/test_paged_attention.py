"""Attention through paged blocks against a softmax written out over every position.

Legend: T tokens, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cyclora_workers.sampling.kv_pool import BLOCK_TOKENS, KvPool, KvShape
from cyclora_workers.sampling.paged_attention import PagedAttention
from cyclora_workers.sampling.part_plan import PART_TOKENS
from cyclora_workers.sampling.step_rows import PagedSpan

CPU = torch.device("cpu")
HEAD_SIZE = 16
SCALING = 0.3


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values of one sequence.

    Shapes:
        query_NTH [N, T, H]; key_GTH, value_GTH [G, T, H].
    """

    query_NTH: Tensor
    key_GTH: Tensor
    value_GTH: Tensor

    def rows(self, start: int, stop: int) -> Heads:
        cut = slice(start, stop)
        return Heads(self.query_NTH[:, cut], self.key_GTH[:, cut], self.value_GTH[:, cut])


def heads(num_tokens: int, seed: int, num_heads: int = 4, num_kv_heads: int = 2) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    return Heads(
        *(
            torch.randn(n, num_tokens, HEAD_SIZE, generator=generator)
            for n in (num_heads, num_kv_heads, num_kv_heads)
        )
    )


def packed(parts: list[Heads], surplus: int = 0) -> Heads:
    if surplus:
        num_heads, num_kv_heads = parts[0].query_NTH.shape[0], parts[0].key_GTH.shape[0]
        parts = [*parts, heads(surplus, 99, num_heads, num_kv_heads)]
    return Heads(
        torch.cat([part.query_NTH for part in parts], 1),
        torch.cat([part.key_GTH for part in parts], 1),
        torch.cat([part.value_GTH for part in parts], 1),
    )


def reference(sequence: Heads, window: int | None) -> Tensor:
    """Loops over heads and positions; fp64. Returns [T, N, H]."""
    num_heads, num_tokens, _ = sequence.query_NTH.shape
    out = torch.zeros(num_tokens, num_heads, HEAD_SIZE, dtype=torch.float64)
    for n in range(num_heads):
        g = n // (num_heads // sequence.key_GTH.shape[0])
        for t in range(num_tokens):
            first = 0 if window is None else max(0, t - window + 1)
            keys = sequence.key_GTH[g, first : t + 1].double()
            weights = torch.softmax(keys @ sequence.query_NTH[n, t].double() * SCALING, 0)
            out[t, n] = weights @ sequence.value_GTH[g, first : t + 1].double()
    return out


def pool(num_kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> KvPool:
    """Full of garbage but for the block of zeros: nothing may be read that was not written."""
    made = KvPool(KvShape(1, num_kv_heads, HEAD_SIZE, dtype, CPU), 300)
    for blocks in made.layer(0):
        blocks[1:] = 7.0
    return made


@dataclass(slots=True)
class Tables:
    """Block tables with blocks in any order."""

    unused: list[int] = field(default_factory=lambda: random.Random(1).sample(range(1, 301), 300))

    def of(self, num_tokens: int) -> list[int]:
        return [self.unused.pop() for _ in range(-(-num_tokens // BLOCK_TOKENS))]


def attend(kv: KvPool, spans: list[PagedSpan], tokens: Heads, window: int | None = None) -> Tensor:
    plan = PagedAttention(kv, spans)
    return plan.attend(0, tokens.query_NTH, tokens.key_GTH, tokens.value_GTH, SCALING, window)


def in_chunks(
    kv: KvPool, blocks: list[int], row: Heads, *cuts: int, window: int | None = None
) -> Tensor:
    """One chunk after the other, cut at the given positions; returns [T, N, H] of the row."""
    edges = sorted({0, *cuts, row.query_NTH.shape[1]})
    return torch.cat(
        [
            attend(kv, [PagedSpan(0, stop - start, start, blocks)], row.rows(start, stop), window)
            for start, stop in pairwise(edges)
        ]
    )


@pytest.mark.parametrize("window", [None, 1, 10, 100, 300])
@pytest.mark.parametrize("num_tokens", [1, 64, 150, 600])
def test_a_chunk_equals_the_written_out_softmax(num_tokens: int, window: int | None) -> None:
    row = heads(num_tokens, 1)

    out = in_chunks(pool(), Tables().of(num_tokens), row, window=window)

    torch.testing.assert_close(reference(row, window).float(), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 2), (7, 1)])
@pytest.mark.parametrize("window", [None, 5, 40, 290])
def test_decoding_has_the_bits_of_one_chunk(
    window: int | None, num_heads: int, num_kv_heads: int, num_threads: int
) -> None:
    """So have chunks cut anywhere: 300 tokens are more than a part."""
    torch.set_num_threads(num_threads)
    row = heads(300, 2, num_heads, num_kv_heads)
    whole = in_chunks(pool(num_kv_heads), Tables().of(300), row, window=window)

    cut = in_chunks(pool(num_kv_heads), Tables().of(300), row, 7, 64, 150, 257, window=window)
    decoded = in_chunks(
        pool(num_kv_heads), Tables().of(300), row, 30, *range(231, 300), window=window
    )

    assert torch.equal(whole, cut)
    assert torch.equal(whole, decoded)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_no_row_has_other_bits_beside_others(num_threads: int) -> None:
    """Random packs of chunks and decoding rows; some begin with blocks that others hold too."""
    torch.set_num_threads(num_threads)
    rng = random.Random(num_threads)
    for trial in range(12):
        num_kv_heads = rng.choice([1, 2])
        num_heads = num_kv_heads * rng.choice([1, 2, 3])
        window = rng.choice([None, None, 70, 280])
        kv, tables = pool(num_kv_heads), Tables()
        prefix = heads(PART_TOKENS + 32, 100 + trial, num_heads, num_kv_heads)
        prefix_blocks = tables.of(prefix.query_NTH.shape[1])
        in_chunks(kv, prefix_blocks, prefix, window=window)
        spans: list[PagedSpan] = []
        newest: list[Heads] = []
        expected: list[Tensor] = []
        start = 0
        for index in range(rng.randint(2, 7)):
            shared = rng.random() < 0.6
            num_new = rng.choice([1, 1, 1, 5, 80])
            num_before = rng.randint(0, 90)
            own = heads(num_before + num_new, 1000 * trial + index, num_heads, num_kv_heads)
            row = packed([prefix, own]) if shared else own
            alone = pool(num_kv_heads)
            expected.append(in_chunks(alone, Tables().of(500), row, window=window)[-num_new:])
            blocks = [*prefix_blocks, *tables.of(170)] if shared else tables.of(170)
            length = row.query_NTH.shape[1]
            begin = prefix.query_NTH.shape[1] if shared else 0
            if num_before:
                span = PagedSpan(0, num_before, begin, blocks)
                attend(kv, [span], row.rows(begin, begin + num_before), window)
            spans.append(PagedSpan(start, start + num_new, length - num_new, blocks))
            newest.append(row.rows(length - num_new, length))
            start += num_new

        out = attend(kv, spans, packed(newest, surplus=9), window)

        assert torch.equal(torch.cat(expected), out[:start])
        assert not out[start:].any()


def test_a_pass_that_is_run_again_gives_the_same_bits() -> None:
    kv, row, blocks = pool(), heads(21, 5), Tables().of(21)
    in_chunks(kv, blocks, row.rows(0, 20))
    span = PagedSpan(0, 1, 20, blocks)

    first = attend(kv, [span], row.rows(20, 21))

    assert torch.equal(first, attend(kv, [span], row.rows(20, 21)))


def test_long_prompts_attend_in_rounds_that_leave_the_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = heads(700, 9)
    at_once = in_chunks(pool(), Tables().of(700), row)
    monkeypatch.setattr("cyclora_workers.sampling.part_plan._MAX_RESULTS", 1)

    assert torch.equal(at_once, in_chunks(pool(), Tables().of(700), row))


def test_half_precision_stays_close_to_the_written_out_softmax() -> None:
    row = heads(300, 7)
    halved = Heads(row.query_NTH.bfloat16(), row.key_GTH.bfloat16(), row.value_GTH.bfloat16())

    out = in_chunks(pool(dtype=torch.bfloat16), Tables().of(300), halved, *range(280, 300))

    assert out.dtype == torch.bfloat16
    assert float((reference(row, None) - out).abs().max()) < 0.03
