"""How much a deployment may grow while tenants come and go, and what it shows of a leak.

The first third of the observations is left out: caches fill and pools of connections grow then.
Numbers were measured on two cores with 33 observations of 20 sessions each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from faults.churn_watch import KeyGroup, Observation

MAX_FD_GROWTH = 8
"""A process keeps as many connections to the store as it ever had commands under way at once: four
more were seen after a minute, and then no more. One of every ten runs would leave 12 in the
shortest soak."""

STORE_BYTES_PER_RUN = 9000
"""3.3 kB of history were measured for a run with its share of a session and its 1.3 sampling
sessions, 1.7 kB of trace, which goes after a day, and 1 kB of audit and metering, which are bounded
and go after 90 days; up to 2 kB more while tenants are there for the first time."""

HISTORY = frozenset(
    {
        "audit:tenant-HEX",
        "metered:tenant-HEX:N",
        "model:ID:train:N",
        "models:tenant-HEX",
        "quota_use:tenant-HEX",
        "sampler:ID:sample:N",
        "session:ID",
        "session:ID:models",
        "session:ID:samplers",
        "session:ID:trace",
        "sessions:tenant-HEX",
        "stored:tenant-HEX",
        "stored_as:tenant-HEX",
        "usage:tenant-HEX",
    }
)
"""Patterns of the keys that may become more: what tenants can list later, and what they owe."""

_MAX_KEYS_IN_TRANSIT = 3
"""A lease is there or is not."""

_RSS_PER_1000_RUNS = 0.01
"""Of what the process has. Three MB in a server; an adapter with its optimizer state, kept by a
worker for each run, would be 1.6 GB."""

_RSS_SLACK_BYTES: Mapping[str, float] = {"worker": 64e6}
_OTHER_RSS_SLACK_BYTES = 2e6
"""What allocators give and take without a trend: workers were seen to go up and down by 35 MB, in
one step. The 50 runs between the halves of the shortest soak would leave 80 MB of adapters."""


def growths(
    observations: Sequence[Observation],
    key_groups: Sequence[Mapping[str, KeyGroup]],
) -> list[str]:
    """Everything that grew more than it may."""
    third = len(observations) // 3
    steady = observations[third:]
    return [
        *_process_growths(steady),
        *_storage_growths(steady),
        *_store_growths(steady),
        *_key_growths(key_groups[third], key_groups[-1]),
    ]


def _halves(
    steady: Sequence[Observation], value: Callable[[Observation], float]
) -> tuple[float, float, float]:
    """The median of each half, and the runs between them."""
    half = len(steady) // 2
    early, late = steady[:half], steady[-half:]

    def median(half: Sequence[Observation], of: Callable[[Observation], float]) -> float:
        return statistics.median([of(each) for each in half])

    num_runs = median(late, lambda each: each.num_runs) - median(early, lambda each: each.num_runs)
    return median(early, value), median(late, value), num_runs


def _process_growths(steady: Sequence[Observation]) -> list[str]:
    found: list[str] = []
    for name in steady[0].processes:
        first, last = steady[0].processes[name], steady[-1].processes[name]
        if last.pid != first.pid:
            found.append(f"{name} was started again")
        if last.num_fds > first.num_fds + MAX_FD_GROWTH:
            found.append(f"{name} has {last.num_fds} descriptors after {first.num_fds}")
        # The store's memory is judged by what it says itself: it holds the history.
        if name != "valkey":
            found += _rss_growth(name, steady)
    return found


def _rss_growth(name: str, steady: Sequence[Observation]) -> list[str]:
    early, late, num_runs = _halves(steady, lambda each: each.processes[name].rss_bytes)
    slack = _RSS_SLACK_BYTES.get(name, _OTHER_RSS_SLACK_BYTES)
    if late - early > slack + early * _RSS_PER_1000_RUNS * num_runs / 1000:
        return [f"{name} grew from {early:g} to {late:g} bytes in {num_runs:g} runs"]
    return []


def _storage_growths(steady: Sequence[Observation]) -> list[str]:
    first, last = steady[0], steady[-1]
    found: list[str] = []
    if last.num_storage_entries > first.num_storage_entries:
        found.append(
            f"{last.num_storage_entries} files and folders after {first.num_storage_entries}"
        )
    if last.storage_bytes > first.storage_bytes:
        found.append(f"{last.storage_bytes} bytes of files after {first.storage_bytes}")
    return found


def _store_growths(steady: Sequence[Observation]) -> list[str]:
    num_runs = steady[-1].num_runs - steady[0].num_runs
    per_run = (steady[-1].store_bytes - steady[0].store_bytes) / num_runs
    if per_run > STORE_BYTES_PER_RUN:
        return [f"the store keeps {per_run:.0f} bytes of each run"]
    return []


def _key_growths(before: Mapping[str, KeyGroup], after: Mapping[str, KeyGroup]) -> list[str]:
    found: list[str] = []
    for pattern, group in after.items():
        old_count = before[pattern].count if pattern in before else 0
        if pattern not in HISTORY and group.count > old_count + _MAX_KEYS_IN_TRANSIT:
            found.append(f"{group.count} keys {pattern} after {old_count}")
    return found
