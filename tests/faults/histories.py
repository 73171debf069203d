"""Clients that play random training runs and record what they were answered, amid kills."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from faults import http_requests
from faults.deployment import Deployment
from faults.histories_model import Event, Kind
from faults.histories_programs import Action, numbered_request, random_program
from faults.http_client import HttpClient, Outcome, Refused, without_ids
from faults.http_requests import Request

MAX_RUN_S = 120.0
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.1, 2.5


@dataclass
class History:
    """One training run as its client saw it."""

    session_id: str
    events: list[Event] = field(default_factory=list[Event])
    """In the order in which they were sent."""
    anomalies: list[str] = field(default_factory=list[str])
    """Answers to repeated requests that differ from those to the first."""


@dataclass(frozen=True, slots=True)
class Client:
    """One tenant's runs, one after the other, and what was metered for them."""

    programs: Sequence[Sequence[Action]]
    histories: Sequence[History]
    usage: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was ended by SIGKILL at an instant, monotonic."""

    name: str
    at_s: float


class Player:
    """Plays one program in a session of its own."""

    def __init__(self, client: HttpClient, session_id: str, model_id: str) -> None:
        self._client = client
        self._model_id = model_id
        self._history = History(session_id)
        self._requests: list[Request] = []
        self._promises: list[str] = []
        self._fetching: list[asyncio.Task[Event]] = []
        self._num_numbered = 0
        self._num_samples = 0

    async def play(self, program: Sequence[Action]) -> History:
        """Send everything, await everything; a repeated request must be answered as at first."""
        async with asyncio.timeout(MAX_RUN_S):
            for action in program:
                if action.awaits_all:
                    await asyncio.gather(*self._fetching)
                await self._send(action)
                if action.again is not None:
                    await self._send_again(action.again)
            self._history.events = await asyncio.gather(*self._fetching)
            for action in program:
                if action.again is not None:
                    await self._fetch_again(action.again)
        return self._history

    async def _send(self, action: Action) -> None:
        invoked_at_s = time.monotonic()
        operation = action.operation
        if operation.kind is Kind.SAMPLE:
            path = http_requests.sampler_path(self._model_id, operation.name)
            session = http_requests.create_sampling_session(
                self._history.session_id, self._num_samples, path
            )
            self._num_samples += 1
            sampling_id: str = (await self._client.post(session))["sampling_session_id"]
            request = http_requests.asample(sampling_id, 0, operation.seed)
        else:
            self._num_numbered += 1
            request = numbered_request(operation, self._model_id, self._num_numbered)
        promise = await self._client.submit(request)
        self._requests.append(request)
        self._promises.append(promise)

        async def fetch() -> Event:
            outcome = await self._client.outcome(promise)
            return Event(operation, outcome, invoked_at_s, time.monotonic())

        self._fetching.append(asyncio.create_task(fetch()))

    async def _send_again(self, index: int) -> None:
        request = self._requests[index]
        try:
            answer = await self._client.submit(request)
        except Refused as refusal:
            answer = str(refusal)
        if answer != self._promises[index]:
            self._history.anomalies.append(f"{request}, sent again, was answered {answer}")

    async def _fetch_again(self, index: int) -> None:
        outcome = await self._client.outcome(self._promises[index])
        if outcome != self._history.events[index].outcome:
            self._history.anomalies.append(f"{self._requests[index]}, fetched again: {outcome}")


async def play_run(client: HttpClient, program: Sequence[Action]) -> History:
    """Play a program as a new session's only training run."""
    session_id = await client.open_session()
    created = (await client.run(http_requests.create_model(session_id))).value()
    return await Player(client, session_id, created["model_id"]).play(program)


async def play_client(deployment: Deployment, programs: Iterable[Sequence[Action]]) -> Client:
    """Play programs one after the other in a fresh tenant."""
    tenant_id, api_key = await asyncio.to_thread(deployment.new_tenant, uuid.uuid4().hex)
    played: list[Sequence[Action]] = []
    histories: list[History] = []
    async with HttpClient(deployment.base_url, api_key) as http:
        for program in programs:
            played.append(program)
            histories.append(await play_run(http, program))
    usage = await asyncio.to_thread(deployment.usage, tenant_id)
    return Client(played, histories, usage)


async def play_amid_kills(
    deployment: Deployment, seed: int, num_clients: int, num_kills: int
) -> tuple[list[Client], list[Kill]]:
    """Clients that go on to another training run for as long as there are kills to come."""
    is_over, stop = threading.Event(), threading.Event()

    def programs(client: int) -> Iterator[Sequence[Action]]:
        for run in itertools.count():
            yield random_program(f"{seed}-{client}-{run}")
            if is_over.is_set():
                return

    def kill() -> list[Kill]:
        try:
            return kill_at_random(deployment, random.Random(seed), num_kills, stop)
        finally:
            is_over.set()

    killing = asyncio.create_task(asyncio.to_thread(kill))
    try:
        clients = await asyncio.gather(
            *(play_client(deployment, programs(index)) for index in range(num_clients))
        )
    finally:
        stop.set()
        kills = await killing
    return clients, kills


def kill_at_random(
    deployment: Deployment, rng: random.Random, num_kills: int, stop: threading.Event
) -> list[Kill]:
    """Kill processes at random moments, each at least once, until told to stop."""
    names = deployment.names
    rng.shuffle(names)
    names += rng.choices(names, k=num_kills - len(names))
    kills: list[Kill] = []
    for name in names:
        # The moments are the point, whatever state the last kill has left.
        if stop.wait(rng.uniform(_MIN_PAUSE_S, _MAX_PAUSE_S)):
            break
        kills.append(Kill(name, time.monotonic()))
        deployment.kill(name)
    return kills


def differences(client: Client, replayed: Client) -> list[str]:
    """Where results differ from those of a replay, bit for bit; errors need only be of a kind."""
    return [
        f"run {run}, operation {index} ({event.operation}): {found} instead of {expected}"
        for run, (ours, theirs) in enumerate(zip(client.histories, replayed.histories, strict=True))
        for index, (event, other) in enumerate(zip(ours.events, theirs.events, strict=True))
        if (found := _comparable(event.outcome, ours))
        != (expected := _comparable(other.outcome, theirs))
    ]


def _comparable(outcome: Outcome, history: History) -> Any:
    if outcome.result is None:
        return outcome.category
    renamed = {history.session_id: "session"}
    return without_ids(outcome.result, renamed, lambda key: key == "clock_cycle:unique")
