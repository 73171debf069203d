"""The soak notices each kind of growth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from faults.churn_limits import growths
from faults.churn_report import bars
from faults.churn_watch import KeyGroup, Observation, Resources, key_pattern

MB = 10**6
NUM_OBSERVATIONS = 9
RUNS_EACH = 100

Change = Callable[[Observation, int], Observation]


def observations(change: Change = lambda at_rest, _: at_rest) -> list[Observation]:
    """A deployment that grows by its history only, each observation changed by its number."""
    return [
        change(
            Observation(
                at_s=float(i),
                num_runs=RUNS_EACH * i,
                processes={
                    name: Resources(1, 300 * MB, 20) for name in ("server", "worker", "valkey")
                },
                storage_bytes=1000,
                num_storage_entries=6,
                store_bytes=2 * MB + 3300 * RUNS_EACH * i,
                num_keys=20 + 4 * RUNS_EACH * i,
            ),
            i,
        )
        for i in range(NUM_OBSERVATIONS)
    ]


def key_groups(pattern: str = "session:ID", per_observation: int = 0) -> list[dict[str, KeyGroup]]:
    return [
        {
            "model:ID:train:N": KeyGroup(RUNS_EACH * i, 1000 * RUNS_EACH * i),
            pattern: KeyGroup(1 + per_observation * i, 100),
        }
        for i in range(NUM_OBSERVATIONS)
    ]


def with_process(name: str, field: str, per_observation: int) -> Change:
    """More of something in one process with every observation."""

    def change(at_rest: Observation, number: int) -> Observation:
        held = at_rest.processes[name]
        fields = {field: getattr(held, field) + per_observation * number}
        processes = {**at_rest.processes, name: replace(held, **fields)}
        return replace(at_rest, processes=processes)

    return change


def with_field(name: str, value: Callable[[int], int]) -> Change:
    """A value that depends on the observation's number."""

    def change(at_rest: Observation, number: int) -> Observation:
        fields: dict[str, Any] = {name: value(number)}
        return replace(at_rest, **fields)

    return change


def test_history_alone_is_no_growth() -> None:
    assert growths(observations(), key_groups()) == []


def test_what_grows_in_the_first_third_only_is_no_growth() -> None:
    change = with_field("num_storage_entries", lambda i: min(i, NUM_OBSERVATIONS // 3))

    assert growths(observations(change), key_groups()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_process("server", "num_fds", 2), "server has 36 descriptors after 26"),
        (with_process("valkey", "pid", 1), "valkey was started again"),
        (with_process("server", "rss_bytes", 2 * MB), "server grew"),
        (with_process("worker", "rss_bytes", 24 * MB), "worker grew"),
        (with_field("num_storage_entries", lambda i: 6 + i), "14 files and folders after 9"),
        (with_field("storage_bytes", lambda i: 1000 + i), "1008 bytes of files after 1003"),
        (with_field("store_bytes", lambda i: 7 * MB * i), "the store keeps 70000 bytes of each"),
    ],
    ids=["descriptors", "restart", "server", "worker", "files", "bytes", "store"],
)
def test_growth_is_found(change: Change, words: str) -> None:
    (found,) = growths(observations(change), key_groups())

    assert found.startswith(words)


def test_keys_that_are_not_history_may_not_become_more() -> None:
    assert growths(observations(), key_groups("body:ID:train:N:N", 1)) == [
        "9 keys body:ID:train:N:N after 4"
    ]


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("model:0c9d3c39-37f5-4f6e-9a8b-2b1a7a1f9d10:train:12:log", "model:ID:train:N:log"),
        ("usage:tenant-0123456789abcdef", "usage:tenant-HEX"),
        (
            "samples:tenant-0123456789abcdef:cyclora/tiny-chat",
            "samples:tenant-HEX:cyclora/tiny-chat",
        ),
    ],
)
def test_keys_are_counted_by_what_they_are(key: str, pattern: str) -> None:
    assert key_pattern(f"cyclora:{key}") == pattern


def test_a_line_of_bars_fits_however_many_values_there_are() -> None:
    assert bars([1.0, 1.0]) == "▁▁"
    assert bars([float(i) for i in range(8)]) == "▁▂▃▄▅▆▇█"
    assert len(bars([float(i) for i in range(1000)])) <= 60
