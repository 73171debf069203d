from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclora_workers.sampling.chunking import PREFILL_BLOCK_TOKENS, share_prefill


@pytest.mark.parametrize(
    ("remaining", "shares"),
    [
        ([], []),
        ([100], [100]),
        ([10_000], [512]),
        ([100, 50, 60], [100, 50, 60]),
        ([10_000, 100], [384, 100]),
        ([10_000, 10_000, 10_000, 10_000, 10_000], [256, 128, 64, 64, 0]),
        ([10_000, 10], [448, 10]),
    ],
)
def test_prompts_share_the_budget_oldest_first(remaining: list[int], shares: list[int]) -> None:
    assert shares == share_prefill(remaining, 512)


prompts = st.lists(st.integers(1, 2000), max_size=12)
budgets = st.integers(PREFILL_BLOCK_TOKENS, 1024)


@given(prompts, budgets)
def test_the_budget_is_kept_and_cuts_are_at_block_boundaries(
    remaining: list[int], budget: int
) -> None:
    shares = share_prefill(remaining, budget)

    assert sum(shares) <= budget
    for share, wanted in zip(shares, remaining, strict=True):
        assert share == wanted or (share < wanted and share % PREFILL_BLOCK_TOKENS == 0)


@given(prompts.filter(bool), budgets)
def test_the_oldest_prompt_always_makes_progress(remaining: list[int], budget: int) -> None:
    assert share_prefill(remaining, budget)[0] > 0


@given(prompts, budgets)
def test_nothing_is_left_over_that_a_waiting_prompt_could_use(
    remaining: list[int], budget: int
) -> None:
    shares = share_prefill(remaining, budget)

    left = budget - sum(shares)
    for share, wanted in zip(shares, remaining, strict=True):
        assert share == wanted or left < PREFILL_BLOCK_TOKENS
