"""What a pass of the sampler computes, and where its keys and values go."""

from __future__ import annotations

import pytest

from cyclora_workers.sampling.step_rows import PagedSpan, StepRows, slots_of


def test_slots_follow_the_block_table() -> None:
    spans = [PagedSpan(0, 5, 2, [7, 3]), PagedSpan(5, 6, 4, [1, 9])]

    slots_T = slots_of(spans, 8, block_tokens=4, no_slot=-1)

    assert slots_T.tolist() == [7 * 4 + 2, 7 * 4 + 3, 3 * 4, 3 * 4 + 1, 3 * 4 + 2, 9 * 4, -1, -1]


def test_a_single_token_has_the_slot_that_it_has_in_a_chunk() -> None:
    chunk = slots_of([PagedSpan(0, 6, 0, [5, 2])], 6, block_tokens=4, no_slot=-1)
    singles = [PagedSpan(place, place + 1, place, [5, 2]) for place in range(6)]

    assert slots_of(singles, 6, block_tokens=4, no_slot=-1).tolist() == chunk.tolist()


@pytest.mark.parametrize(("stop", "expected"), [(1, True), (2, False)])
def test_a_step_decodes_when_every_span_is_one_token(stop: int, expected: bool) -> None:
    spans = [PagedSpan(0, 1, 7, [4]), PagedSpan(1, 1 + stop, 0, [5])]
    rows = StepRows([0] * (1 + stop), [0] * (1 + stop), spans, [])

    assert rows.is_decode is expected
