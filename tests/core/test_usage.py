from __future__ import annotations

import itertools

from cyclora_core.usage import COLUMNS, Charge, GroupBy, Meter, Metered, UsageFilter, summed

DAY = 24
ALL = UsageFilter()
A = Charge("base", "s1", "paper", "run-1", "key-1")
B = Charge("base", "s2", "default", "", "key-2")
ROWS = [
    ("tenant-a", Metered(3 * DAY, Meter.TRAINING, A, 5)),
    ("tenant-a", Metered(3 * DAY + 1, Meter.TRAINING, A, 6)),
    ("tenant-a", Metered(4 * DAY, Meter.SAMPLED, B, 7)),
    ("tenant-b", Metered(4 * DAY, Meter.STORED, B, 8)),
]


def test_sums_are_told_apart_by_what_was_asked_for() -> None:
    [first, second] = summed(ROWS[:3], [GroupBy.DAY, GroupBy.KEY], ALL)

    assert first.group == {GroupBy.DAY: "1970-01-04", GroupBy.KEY: "key-1"}
    assert first.amounts["trained_tokens"] == 11
    assert second.group == {GroupBy.DAY: "1970-01-05", GroupBy.KEY: "key-2"}
    assert second.amounts == dict.fromkeys(COLUMNS.values(), 0) | {"sampled_tokens": 7}


def test_by_meter_there_is_one_amount_for_each() -> None:
    found = summed(ROWS, [GroupBy.TENANT, GroupBy.METER], ALL)

    assert [(*each.group.values(), each.amounts) for each in found] == [
        ("tenant-a", "sampled", {"amount": 7}),
        ("tenant-a", "training", {"amount": 11}),
        ("tenant-b", "stored", {"amount": 8}),
    ]


def test_hours_begin_with_their_day() -> None:
    found = summed(ROWS[:2], [GroupBy.HOUR], ALL)

    assert [each.group[GroupBy.HOUR] for each in found] == [
        "1970-01-04T00:00Z",
        "1970-01-04T01:00Z",
    ]


def test_only_what_was_chosen_is_summed() -> None:
    for chosen, expected in (
        (UsageFilter(projects={"paper"}), 11),
        (UsageFilter(keys={"key-1"}, runs={"run-2"}), 0),
        (UsageFilter(runs={"run-1"}, base_models={"base"}), 11),
    ):
        [total] = summed(ROWS, [], chosen)
        assert sum(total.amounts.values()) == expected


def test_without_groups_there_is_one_sum_even_of_nothing() -> None:
    [total] = summed([], [], ALL)

    assert set(total.amounts.values()) == {0}
    assert summed([], [GroupBy.DAY], ALL) == []


def test_the_sums_over_every_partition_agree() -> None:
    for size in range(4):
        for by in itertools.combinations(GroupBy, size):
            found = summed(ROWS, by, ALL)
            assert sum(sum(each.amounts.values()) for each in found) == 26
