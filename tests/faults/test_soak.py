"""Tenants that come and go for a long time leave a deployment as it was.

``SOAK_S`` is how long, in seconds; ``SOAK_PLOT`` a file for a picture of it. ``make soak`` shows
what was measured; otherwise only a failure does.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from faults.churn import Churn
from faults.churn_limits import growths
from faults.churn_report import key_table, save_plot, table, text_plot
from faults.churn_store import open_store
from faults.churn_watch import KeyGroup, Observation, Watch
from faults.deployment import PLAIN_WORKER, Deployment, Shape, deployed
from faults.http_client import HttpClient
from faults.processes import Processes

pytestmark = [pytest.mark.contract, pytest.mark.slow]

NUM_TENANTS = 100
SESSIONS_PER_ROUND = 20
MIN_ROUNDS = 6
"""Fewer say nothing about a trend."""
SOAK_S = float(os.environ.get("SOAK_S", "60"))
CLEAN_DEADLINE_S = 10.0
"""Work that was queued when a session was finished takes a moment."""


@pytest.fixture
def deployment(processes: Processes, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(processes, tmp_path, Shape(worker_command=PLAIN_WORKER)) as running:
        yield running


@pytest.mark.timeout(SOAK_S + 300)
def test_tenants_that_come_and_go_leave_only_their_history(deployment: Deployment) -> None:
    api_keys = [deployment.new_tenant(f"tenant-{i}")[1] for i in range(NUM_TENANTS)]
    churn = Churn(seed=1)
    observations: list[Observation] = []
    key_groups: list[Mapping[str, KeyGroup]] = []
    leftovers: list[str] = []
    until_s = time.monotonic() + SOAK_S
    with open_store(deployment) as store:
        watch = Watch(deployment, store)
        while time.monotonic() < until_s or len(observations) < MIN_ROUNDS:
            ended = asyncio.run(_play_round(deployment, api_keys, churn))
            deadline_s = 0.0 if leftovers else CLEAN_DEADLINE_S
            leftovers += watch.wait_until_clean(ended, deadline_s)
            watch.let_a_day_pass()
            observations.append(watch.observe(len(churn.ended_models)))
            key_groups.append(watch.key_groups())
            print(_progress(observations[-1], until_s), flush=True)
    _report(observations, key_groups)

    assert [*churn.errors, *leftovers, *growths(observations, key_groups)] == []


async def _play_round(
    deployment: Deployment, api_keys: Sequence[str], churn: Churn
) -> Sequence[str]:
    # A pool of its own: connections that are kept open would count as the server's descriptors.
    async with HttpClient(deployment.base_url, "") as client:
        return await churn.play_round(client, api_keys, SESSIONS_PER_ROUND)


def _progress(observation: Observation, until_s: float) -> str:
    left_s = max(until_s - time.monotonic(), 0.0)
    return f"soak: {observation.num_runs} runs after {observation.at_s:.0f} s, {left_s:.0f} s left"


def _report(
    observations: Sequence[Observation], key_groups: Sequence[Mapping[str, KeyGroup]]
) -> None:
    print(table(observations), end="\n\n")
    print(text_plot(observations), end="\n\n")
    third = len(observations) // 3
    num_runs = observations[-1].num_runs - observations[third].num_runs
    print(key_table(key_groups[third], key_groups[-1], num_runs))
    path = os.environ.get("SOAK_PLOT")
    if path and save_plot(observations, Path(path)):
        print(f"\nplotted in {path}")
