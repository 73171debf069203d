"""How one operation's data are cut into blocks (pure; used by every process but the client).

Data of a block that begin with the same tokens compute them once. So what a block costs, and where
it ends, counts the tokens that a datum does not share with the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cyclora_core.payload import Array
from cyclora_core.types import DatumRange

MAX_BLOCK_TOKENS = 2048
"""Tokens of one block; gradients are summed block by block.

Smaller means more, smaller low-rank products; larger means coarser cycles and microbatches.
"""

_MAX_REUSE = 16
"""Data of a block hold at most this many times the tokens of a block, or of its first datum, shared
ones counted each time: each has a target and a loss weight of its own, which take memory too."""

_PREFIX_STEP = 8
"""Shared prefixes are counted in multiples of this many tokens: data that happen to go on with the
same few tokens after their prompt are not told apart one by one, which would cost more calls of
the attention kernel than it saves."""

_MIN_PREFIX = 32
"""Shorter prefixes, such as the first tokens of a chat template, are not shared."""

_MIN_SAVING = 1 / 8
"""An operation whose shared tokens are a smaller part of all runs as if it shared none."""


def shared_tokens(data: Sequence[Array]) -> list[int]:
    """How many tokens each datum takes over from the one before it; empty if too few to pay.

    The last token of a datum is always its own, so every datum costs something.

    Shapes:
        data: [N] integers each, all of one operation, in its order.
    """
    shared = [0] * len(data)
    for index in range(1, len(data)):
        before, tokens = data[index - 1], data[index]
        length = min(len(before), len(tokens) - 1)
        differing = np.flatnonzero(before[:length] != tokens[:length])
        common = int(differing[0]) if len(differing) else length
        if common >= _MIN_PREFIX:
            shared[index] = common // _PREFIX_STEP * _PREFIX_STEP
    pays = sum(shared) >= _MIN_SAVING * sum(len(tokens) for tokens in data)
    return shared if pays else []


def split_into_blocks(
    datum_tokens: Sequence[int],
    max_block_tokens: int = MAX_BLOCK_TOKENS,
    shared_tokens: Sequence[int] = (),
) -> list[DatumRange]:
    """Cut data into runs of whole datums of at most ``max_block_tokens`` tokens, greedily.

    Tokens that a datum shares with the one before it do not count, and neither does the prefix that
    a block begins with: however long it is, running it once for many data is the point. A full
    block ends, in its second half, where the least is shared over its edge for what it holds: that
    is computed on both sides. A datum larger than the bound is a block by itself.

    A block's edges depend on this operation alone. Since gradients are accumulated block by
    block, the sums do not depend on which tenants share a cycle, or on how the scheduler spread
    the operation over several. ``shared_tokens`` are what the function of this name returns.
    """
    num_data = len(datum_tokens)
    shared = shared_tokens or [0] * num_data
    blocks: list[DatumRange] = []
    start = 0
    while start < num_data:
        stop = _end(start, datum_tokens, shared, max_block_tokens)
        blocks.append(DatumRange(start, stop))
        start = stop
    return blocks


def _end(
    start: int, datum_tokens: Sequence[int], shared: Sequence[int], max_block_tokens: int
) -> int:
    """Where a block ends that begins at ``start``."""
    prefix = shared[start + 1] if start + 1 < len(shared) else 0
    max_targets = _MAX_REUSE * max(max_block_tokens, datum_tokens[start])
    num_tokens = num_targets = 0
    end, least = start + 1, math.inf
    for index in range(start, len(datum_tokens)):
        is_first = index == start
        if not is_first:
            is_half_full = 2 * num_tokens >= max_block_tokens
            cost = shared[index] / num_tokens if is_half_full else math.inf
            if cost <= least:  # the later one of two that are equally good
                end, least = index, cost
        num_tokens += datum_tokens[index] - (prefix if is_first else shared[index])
        num_targets += datum_tokens[index]
        is_full = num_tokens > max_block_tokens or num_targets > max_targets
        if is_full and not is_first:
            return end
    return len(datum_tokens)


def block_tokens(
    block: DatumRange, datum_tokens: Sequence[int], shared_tokens: Sequence[int] = ()
) -> int:
    """Tokens of a block that go through the model, each shared one counted once."""
    once = sum(shared_tokens[block.start + 1 : block.stop])
    return sum(datum_tokens[block.start : block.stop]) - once
