"""Attention through the cache against a softmax written out over every position.

Legend: T tokens, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cyclora_workers.sampling.cached_attention import CachedAttention, DecodeSpan, PrefillSpan
from cyclora_workers.sampling.kv_cache import KvShape, RequestCache

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


def cache(num_prompt_tokens: int, num_rows: int = 1, num_kv_heads: int = 2) -> RequestCache:
    shape = KvShape(1, num_kv_heads, HEAD_SIZE, torch.float32, CPU)
    return RequestCache(shape, num_prompt_tokens, num_rows, 100)


def attend(attention: CachedAttention, tokens: Heads, window: int | None = None) -> Tensor:
    return attention.attend(0, tokens.query_NTH, tokens.key_GTH, tokens.value_GTH, SCALING, window)


def prefill(cache: RequestCache, prompt: Heads, *cuts: int, window: int | None = None) -> Tensor:
    """Prefill in chunks that end at the cuts; returns [T, N, H] of the whole prompt."""
    outs: list[Tensor] = []
    for start, stop in zip((0, *cuts), (*cuts, prompt.query_NTH.shape[1]), strict=True):
        plan = CachedAttention([PrefillSpan(0, stop - start, cache)], [], CPU)
        outs.append(attend(plan, prompt.rows(start, stop), window))
        cache.num_prefilled = stop
    return torch.cat(outs)


def decode(caches: list[RequestCache], newest: list[Heads], window: int | None = None) -> Tensor:
    """One step of all rows of all caches; ``newest`` holds a cache's rows as its tokens."""
    spans: list[DecodeSpan] = []
    start = 0
    for each in caches:
        each.make_room()
        spans.append(DecodeSpan(start, start + each.num_rows, each))
        start += each.num_rows
    out = attend(CachedAttention([], spans, CPU), packed(newest), window)
    for each in caches:
        each.num_new_tokens += 1
    return out


@pytest.mark.parametrize("window", [None, 1, 10, 100])
@pytest.mark.parametrize("num_tokens", [1, 64, 150])
def test_prefill_equals_the_written_out_softmax(num_tokens: int, window: int | None) -> None:
    prompt = heads(num_tokens, 1)

    out = prefill(cache(num_tokens), prompt, window=window)

    torch.testing.assert_close(reference(prompt, window).float(), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("window", [None, 10, 100])
def test_chunks_of_a_prompt_give_the_bits_of_the_whole(
    window: int | None, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    prompt = heads(205, 2)
    whole = prefill(cache(205), prompt, window=window)

    chunked = prefill(cache(205), prompt, 64, 192, window=window)

    assert torch.equal(whole, chunked)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 2), (7, 1)])
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_decoding_equals_the_written_out_softmax(
    num_rows: int, window: int | None, num_heads: int, num_kv_heads: int
) -> None:
    num_prompt, num_steps = 23, 36
    prompt = heads(num_prompt, 3, num_heads, num_kv_heads)
    rows = [heads(num_steps, 10 + r, num_heads, num_kv_heads) for r in range(num_rows)]
    kv = cache(num_prompt, num_rows, num_kv_heads)
    prefill(kv, prompt)

    outs = [
        decode([kv], [packed([row.rows(step, step + 1) for row in rows])], window)
        for step in range(num_steps)
    ]

    for r, row in enumerate(rows):
        expected = reference(packed([prompt, row]), window)[num_prompt:]
        mine = torch.stack([out[r] for out in outs])
        torch.testing.assert_close(expected.float(), mine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 2), (7, 1)])
def test_a_sibling_that_ends_leaves_the_bits_of_the_others(
    num_heads: int, num_kv_heads: int, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    prompt = heads(37, 4, num_heads, num_kv_heads)
    steps = [heads(3, 20 + step, num_heads, num_kv_heads) for step in range(20)]
    complete, shrinking = cache(37, 3, num_kv_heads), cache(37, 3, num_kv_heads)
    prefill(complete, prompt)
    prefill(shrinking, prompt)

    for step, tokens in enumerate(steps):
        expected = decode([complete], [tokens])
        if step < 7:
            assert torch.equal(expected, decode([shrinking], [tokens]))
            continue
        if step == 7:
            shrinking.remove_row(0)
        remaining = packed([tokens.rows(2, 3), tokens.rows(1, 2)])
        out = decode([shrinking], [remaining])
        assert torch.equal(expected[[2, 1]], out)


def test_one_pass_mixes_chunks_and_rows_in_any_order_and_zeroes_the_surplus() -> None:
    prompts = [heads(n, 30 + n) for n in (70, 9, 33)]
    newest = [heads(2, 41), heads(1, 42)]
    alone, together = ([cache(70), cache(9, 2), cache(33)] for _ in range(2))
    expected_chunk = prefill(alone[0], prompts[0])
    for kv, prompt in zip(alone[1:], prompts[1:], strict=True):
        prefill(kv, prompt)
    for kv, prompt in zip(together[1:], prompts[1:], strict=True):
        prefill(kv, prompt)
        kv.make_room()
    expected = [decode([kv], [tokens]) for kv, tokens in zip(alone[1:], newest, strict=True)]

    plan = CachedAttention(
        [PrefillSpan(2, 72, together[0])],
        [DecodeSpan(0, 2, together[1]), DecodeSpan(72, 73, together[2])],
        CPU,
    )
    out = attend(plan, packed([newest[0], prompts[0], newest[1]], surplus=23))

    assert torch.equal(torch.cat([expected[0], expected_chunk, expected[1]]), out[:73])
    assert torch.equal(torch.zeros(23, 4, HEAD_SIZE), out[73:])


def test_a_pass_that_is_run_again_gives_the_same_bits() -> None:
    kv = cache(20, 2)
    prefill(kv, heads(20, 5))
    newest = heads(2, 6)
    kv.make_room()
    plan = CachedAttention([], [DecodeSpan(0, 2, kv)], CPU)

    first = attend(plan, newest)

    assert torch.equal(first, attend(plan, newest))


@pytest.mark.parametrize("num_rows", [1, 2])
def test_half_precision_stays_close_to_the_written_out_softmax(num_rows: int) -> None:
    shape = KvShape(1, 2, HEAD_SIZE, torch.bfloat16, CPU)
    kv = RequestCache(shape, 50, num_rows, 10)
    prompt, newest = heads(50, 7), heads(num_rows, 8)

    def halved(tokens: Heads) -> Heads:
        return Heads(
            tokens.query_NTH.bfloat16(), tokens.key_GTH.bfloat16(), tokens.value_GTH.bfloat16()
        )

    prefill(kv, halved(prompt))
    out = decode([kv], [halved(newest)])

    assert out.dtype == torch.bfloat16
    expected = reference(packed([prompt, newest.rows(0, 1)]), None)[50]
    assert math.isclose(0.0, float((expected - out[0]).abs().max()), abs_tol=0.03)
