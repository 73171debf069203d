"""The tree of a block's data against a table of which token precedes which."""

from __future__ import annotations

import numpy as np
import pytest

from cyclora_core.payload import Array
from cyclora_workers.prefix_tree import Node, PrefixTree


def letters(*words: str) -> list[Array]:
    return [np.array([ord(letter) for letter in word]) for word in words]


def random_data(seed: int) -> tuple[list[Array], list[int]]:
    rng = np.random.default_rng(seed)
    data: list[Array] = []
    shared: list[int] = []
    for _ in range(rng.integers(1, 9)):
        before = data[-1] if data and rng.random() < 0.8 else np.arange(0)
        shared.append(int(rng.integers(0, len(before) + 1)))
        own = rng.integers(0, 1 << 30, rng.integers(1, 9))
        data.append(np.concatenate((before[: shared[-1]], own)))
    return data, shared


def test_the_example_of_the_module() -> None:
    tree = PrefixTree(letters("abcde", "abcfgh", "abcfij"), [0, 3, 4])

    assert "".join(chr(token) for token in tree.tokens_R) == "abcdefghij"
    assert tree.positions_R.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 4, 5]
    assert tree.nodes == [
        Node(0, 3, 10, 0),
        Node(3, 5, 5, 3),
        Node(5, 6, 10, 3),
        Node(6, 8, 8, 4),
        Node(8, 10, 10, 4),
    ]


def test_what_the_first_datum_shares_with_one_outside_of_the_block_is_not_left_out() -> None:
    tree = PrefixTree(letters("abc", "abx"), [2, 2])

    assert tree.num_rows == 4


def test_data_without_prefixes_are_laid_end_to_end() -> None:
    tree = PrefixTree(letters("abc", "abx"))

    assert not tree.is_shared
    assert tree.rows_N.tolist() == list(range(6))


@pytest.mark.parametrize("seed", range(100))
def test_a_row_sees_what_precedes_it_in_its_data_and_nothing_else(seed: int) -> None:
    data, shared = random_data(seed)

    tree = PrefixTree(data, shared)

    rows_N = tree.rows_N
    assert tree.num_rows == sum(map(len, data)) - sum(shared)
    assert np.array_equal(tree.tokens_R[rows_N], np.concatenate(data))
    expected = np.zeros((tree.num_rows, tree.num_rows), int)
    for path in np.split(rows_N, np.cumsum(tree.sizes)[:-1]):
        assert np.array_equal(tree.positions_R[path], np.arange(len(path)))
        for place, row in enumerate(path):
            expected[row, path[: place + 1]] = 1
    seen = np.zeros_like(expected)
    for node in tree.nodes:
        size = node.stop - node.start
        seen[node.start : node.stop, node.start : node.stop] += np.tri(size, dtype=int)
        seen[node.stop : node.end, node.start : node.stop] += 1
        path = tree.path(node)
        assert sorted(path) == np.flatnonzero(expected[node.stop - 1]).tolist()
        assert tree.positions_R[node.start] == node.position
    assert np.array_equal(seen, expected)
