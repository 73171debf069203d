"""Where an operation is cut, and what its data share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cyclora_core.blocks import block_tokens, shared_tokens, split_into_blocks
from cyclora_core.payload import Array
from cyclora_core.types import DatumRange


def data(*begins: int, length: int = 100) -> list[Array]:
    """Each datum begins with so many tokens of the one before it, then goes on with its own."""
    made: list[Array] = []
    for index, count in enumerate(begins):
        before = made[-1][:count] if made else np.arange(0)
        made.append(np.concatenate((before, 1000 * index + np.arange(count, length))))
    return made


def ranges(*edges: int) -> list[DatumRange]:
    return [DatumRange(start, stop) for start, stop in pairwise(edges)]


def cut(sizes: Sequence[int], shared: Sequence[int], max_tokens: int = 100) -> list[DatumRange]:
    return split_into_blocks(sizes, max_tokens, shared)


def test_a_shared_prefix_counts_in_steps_of_eight_tokens() -> None:
    assert shared_tokens(data(0, 64, 71, 72)) == [0, 64, 64, 72]


def test_the_begin_of_a_chat_template_is_no_prefix() -> None:
    assert shared_tokens(data(0, 31, 32, 90)) == [0, 0, 32, 88]


def test_an_operation_that_shares_little_shares_nothing() -> None:
    assert shared_tokens(data(0, 40, 0, 0, 0)) == []
    assert shared_tokens([]) == []


def test_the_last_token_of_a_datum_is_its_own() -> None:
    tokens = np.arange(64)

    assert shared_tokens([tokens, tokens, np.append(tokens, 7)]) == [0, 56, 64]


def test_without_shared_tokens_blocks_are_filled_in_order() -> None:
    assert cut([40, 40, 40, 90, 101, 1], []) == ranges(0, 2, 3, 4, 5, 6)


def test_shared_tokens_and_the_first_prefix_take_no_room() -> None:
    sizes, shared = [1000 + 20] * 7, [0] + [1000] * 6

    blocks = cut(sizes, shared)

    assert blocks == ranges(0, 5, 7)
    assert [block_tokens(each, sizes, shared) for each in blocks] == [1100, 1040]


def test_a_full_block_ends_before_a_group_rather_than_inside_it() -> None:
    sizes, shared = [60] * 8, [0, 40, 40, 40, 0, 40, 40, 40]

    assert cut(sizes, shared, 150) == ranges(0, 4, 8)


def test_turns_of_a_conversation_fill_blocks() -> None:
    """Each datum goes on where the one before it ended, so the least is shared at the begin."""
    sizes = [40 * turn for turn in range(1, 13)]
    shared = [0, *sizes[:-1]]

    assert cut(sizes, shared, 160) == ranges(0, 5, 10, 12)


def test_data_that_share_nearly_everything_do_not_fill_a_block_without_end() -> None:
    sizes, shared = [1001] * 100, [0] + [1000] * 99

    assert cut(sizes, shared, 1000)[0] == DatumRange(0, 16)


@given(
    begins=st.lists(st.integers(0, 200), min_size=1, max_size=30),
    own=st.lists(st.integers(1, 150), min_size=30, max_size=30),
)
def test_blocks_hold_all_data_in_order_and_no_more_than_fits(
    begins: list[int], own: list[int]
) -> None:
    sizes: list[int] = []
    shared: list[int] = []
    for begin, tokens in zip(begins, own, strict=False):
        shared.append(min(begin, sizes[-1]) if sizes else 0)
        sizes.append(shared[-1] + tokens)

    blocks = cut(sizes, shared)

    assert [b.start for b in blocks] + [len(sizes)] == [0] + [b.stop for b in blocks]
    for block in blocks:
        prefix = shared[block.start + 1] if block.stop > block.start + 1 else sizes[block.start]
        assert block_tokens(block, sizes, shared) <= 100 + prefix
