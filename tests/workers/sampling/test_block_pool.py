from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclora_workers.sampling.block_pool import BlockPool, OutOfBlocks


def test_a_block_comes_back_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2)
    blocks = pool.take(2)
    pool.hold(blocks[:1])

    pool.release(blocks)

    assert pool.num_available == 1
    pool.release(blocks[:1])
    assert pool.num_available == 2


def test_more_than_is_available_takes_nothing() -> None:
    pool = BlockPool(3)
    pool.take(2)

    with pytest.raises(OutOfBlocks, match="2 blocks; 1 are available"):
        pool.take(2)

    assert pool.num_available == 1


def test_a_known_prefix_is_found_until_its_memory_is_needed() -> None:
    pool = BlockPool(3)
    blocks = pool.take(2)
    for block, key in zip(blocks, (b"a", b"ab"), strict=True):
        pool.remember(block, key)
    pool.release(blocks)

    assert pool.find([b"a", b"ab", b"abc"]) == blocks
    pool.take(1)
    assert pool.find([b"a", b"ab"]) == blocks
    pool.take(1)
    assert pool.find([b"a", b"ab"]) == blocks[:1]
    pool.take(1)
    assert pool.find([b"a"]) == []


def test_the_prefix_used_longest_ago_makes_way_first() -> None:
    pool = BlockPool(2)
    for key in (b"old", b"new"):
        (block,) = pool.take(1)
        pool.remember(block, key)
        pool.release([block])
    pool.hold(pool.find([b"old"]))
    pool.release(pool.find([b"old"]))

    pool.take(1)

    assert pool.find([b"old"])
    assert not pool.find([b"new"])


def test_a_held_prefix_never_makes_way() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.remember(block, b"a")
    pool.release([block])
    pool.hold([block])

    pool.take(1)

    assert pool.num_available == 0
    assert pool.find([b"a"]) == [block]


def test_of_two_blocks_with_one_key_the_first_stays_known() -> None:
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.remember(first, b"a")

    pool.remember(second, b"a")
    pool.release([second])

    assert pool.find([b"a"]) == [first]
    assert pool.take(1) == [second]


@given(st.lists(st.tuples(st.sampled_from("thrf"), st.integers(0, 9)), max_size=60))
def test_no_block_is_lost_or_given_twice(actions: list[tuple[str, int]]) -> None:
    pool = BlockPool(5)
    held: list[int] = []
    for action, number in actions:
        if action == "t":
            wanted = number % 3
            if wanted <= pool.num_available:
                taken = pool.take(wanted)
                assert not set(taken) & set(held)
                held += taken
        elif action == "h" and held:
            pool.hold([held[number % len(held)]])
            held.append(held[number % len(held)])
        elif action == "r" and held:
            pool.release([held.pop(number % len(held))])
        elif action == "f" and held:
            pool.remember(held[number % len(held)], bytes([number]))
        assert pool.num_available == 5 - len(set(held))
        for block in set(held):
            assert pool.num_holders(block) == held.count(block)
