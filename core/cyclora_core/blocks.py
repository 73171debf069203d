"""How one operation's data are cut into blocks (pure; used by the scheduler and the worker)."""

from __future__ import annotations

from collections.abc import Sequence

from cyclora_core.types import DatumRange

MAX_BLOCK_TOKENS = 2048
"""Tokens of one block; gradients are summed block by block.

Smaller means more, smaller low-rank products; larger means coarser cycles and microbatches.
"""


def split_into_blocks(
    datum_tokens: Sequence[int], max_block_tokens: int = MAX_BLOCK_TOKENS
) -> list[DatumRange]:
    """Cut data into runs of whole datums of at most ``max_block_tokens`` tokens, greedily.

    A block's edges depend on this operation alone. Since gradients are accumulated block by
    block, the sums do not depend on which tenants share a cycle, or on how the scheduler spread
    the operation over several. A datum larger than the bound is a block by itself.
    """
    blocks: list[DatumRange] = []
    start = 0
    num_tokens = 0
    for index, tokens in enumerate(datum_tokens):
        if index > start and num_tokens + tokens > max_block_tokens:
            blocks.append(DatumRange(start, index))
            start, num_tokens = index, 0
        num_tokens += tokens
    if start < len(datum_tokens):
        blocks.append(DatumRange(start, len(datum_tokens)))
    return blocks
