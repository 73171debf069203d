"""Whatever is killed while clients work, what they see is one execution of their requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from faults.deployment import PLAIN_WORKER, Deployment, Shape, deployed
from faults.histories import Client, differences, play_amid_kills, play_client
from faults.histories_model import Event, cycle_violations, metered, violations
from faults.histories_programs import random_program
from faults.processes import Processes

pytestmark = [pytest.mark.contract, pytest.mark.slow]

NUM_CLIENTS = 5
NUM_KILLS = 12
SEEDS = [int(seed) for seed in os.environ.get("HISTORY_SEEDS", "1").split(",")]
"""Of the requests and the victims; when a kill comes about is new each time."""


SHAPES = {
    "one of each": Shape(worker_command=PLAIN_WORKER),
    "two of some": Shape(("worker", "other"), ("scheduler", "standby"), PLAIN_WORKER),
}


@pytest.fixture(scope="module", params=SHAPES)
def deployment(
    request: pytest.FixtureRequest,
    processes: Processes,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("histories")
    with deployed(processes, folder, SHAPES[request.param]) as running:
        yield running


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", SEEDS)
async def test_runs_amid_kills_are_what_an_undisturbed_replay_makes_of_them(
    seed: int, deployment: Deployment
) -> None:
    clients, kills = await play_amid_kills(deployment, seed, NUM_CLIENTS, NUM_KILLS)
    replayed = await asyncio.gather(*(play_client(deployment, each.programs) for each in clients))

    assert {kill.name for kill in kills} == set(deployment.names)
    assert [*_findings(clients), *_differences(clients, replayed)] == [], f"seed {seed}"


async def test_runs_beside_one_another_are_what_each_is_alone(deployment: Deployment) -> None:
    programs = [[random_program(f"alone-{i}")] for i in range(3)]

    together = await asyncio.gather(*(play_client(deployment, each) for each in programs))
    alone = [await play_client(deployment, each) for each in programs]

    assert [*_findings(together), *_differences(together, alone)] == []


def _findings(clients: list[Client]) -> list[str]:
    """All that no execution in order could have answered."""
    found: list[str] = []
    seen: list[Event] = []
    for number, client in enumerate(clients):
        for run, history in enumerate(client.histories):
            wrong = [*history.anomalies, *violations(history.events)]
            found += [f"client {number}, run {run}: {each}" for each in wrong]
            seen += history.events
        expected = metered([e for history in client.histories for e in history.events])
        usage = {name: amount for name, amount in client.usage.items() if amount}
        if usage != expected:
            found.append(f"client {number} was metered {usage} for {expected}")
    return found + cycle_violations(seen)


def _differences(clients: list[Client], replayed: list[Client]) -> list[str]:
    return [
        f"client {number}, {each}"
        for number, (client, again) in enumerate(zip(clients, replayed, strict=True))
        for each in differences(client, again)
    ]
