from __future__ import annotations

import pytest
import torch

from cyclora_workers.sampling.kv_cache import KvShape, RequestCache

SHAPE = KvShape(3, 2, 4, torch.float32, torch.device("cpu"))


def capacity(cache: RequestCache) -> int:
    return cache.own(0).shape[3]


def feed(cache: RequestCache, num_tokens: int) -> None:
    """Feed tokens whose keys name layer, row and position."""
    for _ in range(num_tokens):
        cache.make_room()
        for layer in range(3):
            for row in range(cache.num_rows):
                cache.own(layer)[:, row, :, cache.num_own_tokens] = float(
                    1000 * layer + 100 * row + cache.num_new_tokens
                )
        cache.num_new_tokens += 1


def test_several_rows_share_one_copy_of_the_prompt() -> None:
    cache = RequestCache(SHAPE, 50, 8, 10)

    assert cache.shared(0).shape == (2, 1, 2, 50, 4)
    assert cache.num_own_tokens == 0


def test_a_single_row_keeps_its_prompt_in_its_own_part() -> None:
    cache = RequestCache(SHAPE, 50, 1, 10)

    cache.prompt(2)[:, :, 49] = 7.0

    assert cache.num_shared_tokens == 0
    assert bool((cache.own(2)[:, 0, :, 49] == 7.0).all())


@pytest.mark.parametrize("num_rows", [1, 4])
def test_growing_keeps_what_was_written(num_rows: int) -> None:
    cache = RequestCache(SHAPE, 5, num_rows, 100)
    cache.prompt(1)[:] = -1.0

    feed(cache, 70)

    begin = cache.num_own_tokens - 70
    for layer in range(3):
        for row in range(num_rows):
            expected = 1000.0 * layer + 100 * row + torch.arange(70.0)
            assert torch.equal(expected, cache.own(layer)[1, row, 1, begin : begin + 70, 3])
    assert bool((cache.prompt(1)[..., :5, :] == -1.0).all())


def test_capacity_doubles_but_never_exceeds_the_reservation() -> None:
    cache = RequestCache(SHAPE, 10, 2, 90)
    seen: set[int] = set()
    for _ in range(90):
        feed(cache, 1)
        seen.add(capacity(cache))

    assert {32, 64, 90} == seen
    with pytest.raises(AssertionError, match="outgrew"):
        feed(cache, 1)


def test_the_last_row_takes_the_place_of_one_that_is_removed() -> None:
    cache = RequestCache(SHAPE, 10, 3, 90)
    feed(cache, 5)

    moved = cache.remove_row(0)

    assert moved == 2
    assert cache.num_rows == 2
    assert torch.equal(200.0 + torch.arange(5.0), cache.own(0)[0, 0, 0, :5, 0])
    assert torch.equal(100.0 + torch.arange(5.0), cache.own(0)[0, 1, 0, :5, 0])


def test_a_row_can_be_removed_before_anything_was_fed() -> None:
    cache = RequestCache(SHAPE, 10, 3, 90)
    cache.remove_row(1)

    feed(cache, 2)

    assert cache.num_rows == 2
    assert cache.own(0).shape[1] == 2
