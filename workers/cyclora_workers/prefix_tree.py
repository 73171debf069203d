"""The tree that a block's data form when they begin with the same tokens (pure; numpy only).

Every datum takes over its first rows from the datum before it and adds rows of its own. Rows lie
in the order of the data, so all rows that come out of a node directly follow it::

    data                rows            nodes (start, stop, end)
    a b c d e           a b c d e       a b c (0, 3, 10)   d e (3, 5, 5)
    a b c f g h         f g h           f (5, 6, 10)       g h (6, 8, 8)
    a b c f i j         i j             i j (8, 10, 10)

Legend: N tokens of the data end to end, R rows (tokens that are computed), C data that a row is
part of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cyclora_core.payload import Array


@dataclass(frozen=True, slots=True)
class Node:
    """Consecutive rows [start, stop) that the same data run through.

    Rows [stop, end) come out of it: they attend to all of its rows.
    """

    start: int
    stop: int
    end: int
    position: int
    """Of its first row in each datum that runs through it."""


class PrefixTree:
    """Rows of a block's data, each shared one counted once."""

    def __init__(self, tokens: Sequence[Array], shared_tokens: Sequence[int] = ()) -> None:
        """Arrange the data.

        Args:
            tokens: Of each datum.
            shared_tokens: How many of them it takes over from the datum before it, not counting
                the first datum, which has none before it here. Empty when nothing is shared.
        """
        shared = [0, *shared_tokens[1:]] if shared_tokens else [0] * len(tokens)
        self.is_shared = any(shared)
        own = [each[count:] for each, count in zip(tokens, shared, strict=True)]
        self.tokens_R: Array = np.concatenate(own)
        self.positions_R: Array = np.concatenate(
            [np.arange(count, len(each)) for each, count in zip(tokens, shared, strict=True)]
        )
        self.num_rows = len(self.tokens_R)
        self.sizes = [len(each) for each in tokens]
        self._paths = list(_paths([len(each) for each in own], shared))
        self.nodes = _nodes([len(each) for each in own], shared)

    @property
    def rows_N(self) -> Array:
        """The row of every token of the data."""
        return np.concatenate(self._paths)

    def path(self, node: Node) -> Array:
        """All rows of a datum up to the end of a node."""
        datum = next(path for path in self._paths if len(path) and path[-1] >= node.stop - 1)
        return datum[: node.position + node.stop - node.start]


def _paths(num_own: Sequence[int], shared: Sequence[int]) -> Iterator[Array]:
    """The rows of each datum."""
    path = np.arange(0)
    num_rows = 0
    for own, count in zip(num_own, shared, strict=True):
        path = np.concatenate((path[:count], np.arange(num_rows, num_rows + own)))
        num_rows += own
        yield path


def _nodes(num_own: Sequence[int], shared: Sequence[int]) -> list[Node]:
    """All nodes in the order of their rows; ``open_nodes`` leads to the newest datum."""
    nodes: list[Node] = []
    open_nodes: list[Node] = []
    num_rows = 0

    def close(node: Node) -> None:
        nodes.append(replace(node, end=num_rows))

    for own, count in zip(num_own, shared, strict=True):
        while open_nodes and open_nodes[-1].position >= count:
            close(open_nodes.pop())
        if open_nodes:
            above = open_nodes.pop()
            cut = above.start + count - above.position
            if cut < above.stop:
                close(replace(above, start=cut, position=count))
                above = replace(above, stop=cut)
            open_nodes.append(above)
        open_nodes.append(Node(num_rows, num_rows + own, 0, count))
        num_rows += own
    while open_nodes:
        close(open_nodes.pop())
    return sorted(nodes, key=lambda node: node.start)
