"""How the prefill budget of one step is shared among the prompts that are not through yet."""

from __future__ import annotations

from collections.abc import Sequence

PREFILL_BLOCK_TOKENS = 64
"""Attention of a prompt runs in blocks that begin at multiples of this, and chunks end there.

So a prompt's bits do not depend on how it was cut, which its neighbours have a say in.
"""


def share_prefill(remaining: Sequence[int], budget_tokens: int) -> list[int]:
    """Tokens that each prompt, oldest first, may prefill in this step.

    Each takes at most half of what is left, so a long prompt leaves room for those behind it;
    what they do not need is then handed out from the oldest on. Shares that do not complete a
    prompt are whole blocks.
    """
    shares = [0] * len(remaining)
    left = budget_tokens
    for part in (2, 1):
        for index, wanted in enumerate(remaining):
            offered = left // part
            # Half of a small rest may be less than a block; a whole block still fits then.
            offered = max(offered, min(left, PREFILL_BLOCK_TOKENS))
            share = _whole(wanted - shares[index], offered)
            shares[index] += share
            left -= share
    return shares


def _whole(wanted: int, offered: int) -> int:
    """All that is wanted, or else as many whole blocks as are offered."""
    if wanted <= offered:
        return wanted
    return offered // PREFILL_BLOCK_TOKENS * PREFILL_BLOCK_TOKENS
