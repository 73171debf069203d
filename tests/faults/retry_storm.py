"""One training run whose every request arrives up to five times, in any order, some very late."""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from faults import http_requests
from faults.churn_store import logged_seq_ids, open_store
from faults.deployment import Deployment
from faults.http_client import HttpClient, Outcome, Refused, without_ids
from faults.http_requests import Request, datum

MAX_COPIES = 5
NUM_STEPS = 12
_MAX_AT_ONCE = 12
_NUM_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All that a run leaves behind; equal for runs of the same requests."""

    outcomes: Sequence[Any]
    """What each request ended in, in order, without ids."""
    files: Mapping[str, str]
    """SHA-256 of every checkpoint file, by path below the model's folder."""
    usage: Mapping[str, int]
    logged_seq_ids: Sequence[int]


class Sender:
    """Sends requests in order, once each, and is the measure for every other way."""

    async def send(self, client: HttpClient, requests: Sequence[Request]) -> list[Outcome]:
        """Send all of them; returns what each ended in, in order."""
        return [await client.run(request) for request in requests]

    async def prepare(self, client: HttpClient, request: Request) -> dict[str, Any]:
        """Send one that the others need an answer of."""
        return await client.post(request)


class Storm(Sender):
    """Sends each request 1 to 5 times, shuffled; some copies after later requests have settled."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._at_once = asyncio.Semaphore(_MAX_AT_ONCE)
        self._earlier: list[tuple[Request, str]] = []
        """What earlier calls have sent, and the promise that each must be answered with."""

    async def prepare(self, client: HttpClient, request: Request) -> dict[str, Any]:
        copies = self._rng.randint(2, MAX_COPIES)
        answers = await asyncio.gather(*(client.post(request) for _ in range(copies)))
        assert all(answer == answers[0] for answer in answers), answers
        return answers[0]

    async def send(self, client: HttpClient, requests: Sequence[Request]) -> list[Outcome]:
        fetched: list[asyncio.Future[Outcome]] = [
            asyncio.get_running_loop().create_future() for _ in requests
        ]
        promises: list[set[str]] = [set() for _ in requests]

        async def send_one(index: int) -> None:
            async with self._at_once:
                promise = await client.submit(requests[index])
            is_first = not promises[index]
            promises[index].add(promise)
            if is_first:
                fetched[index].set_result(await client.outcome(promise))

        async def send_late(index: int, awaited: int) -> None:
            await fetched[awaited]
            await send_one(index)

        async def send_earlier(request: Request, promise: str, awaited: int) -> None:
            await fetched[awaited]
            assert await client.submit(request) == promise

        order = list(range(len(requests)))
        first = [index for index in order for _ in range(self._rng.randint(1, 3))]
        late = [index for index in order for _ in range(self._rng.randint(0, MAX_COPIES - 3))]
        self._rng.shuffle(first)
        tasks = [send_one(index) for index in first]
        tasks += [send_late(index, self._rng.randrange(index, len(order))) for index in late]
        tasks += [send_earlier(*each, self._rng.choice(order)) for each in self._earlier]
        async with asyncio.timeout(120):
            await asyncio.gather(*tasks)
        self._earlier += [
            (request, promise) for request, (promise,) in zip(requests, promises, strict=True)
        ]
        outcomes = [each.result() for each in fetched]
        # A result stays what it is, however often it is fetched.
        again = [await client.outcome(promise) for (promise,) in promises]
        assert again == outcomes
        return outcomes


async def play(deployment: Deployment, sender: Sender) -> RunRecord:
    """One run in a tenant of its own, sent by ``sender``."""
    tenant_id, api_key = await asyncio.to_thread(deployment.new_tenant, uuid.uuid4().hex)
    async with HttpClient(deployment.base_url, api_key) as client:
        opening = http_requests.create_session(uuid.uuid4().hex)
        session_id: str = (await sender.prepare(client, opening))["session_id"]
        creating = http_requests.create_model(session_id)
        model_id: str = (await sender.prepare(client, creating))["model_id"]
        base = http_requests.create_sampling_session(session_id, 0)
        sampling_id: str = (await sender.prepare(client, base))["sampling_session_id"]

        requests = [*training(model_id), *samples(sampling_id)]
        outcomes = await sender.send(client, requests)
        ephemeral: str = outcomes[EPHEMERAL_SAVE].value()["sampling_session_id"]
        outcomes += await sender.send(client, samples(ephemeral))
    usage = await asyncio.to_thread(deployment.usage, tenant_id)
    with open_store(deployment) as store:
        seq_ids = logged_seq_ids(store, model_id)
    return RunRecord(
        [_comparable(outcome, session_id) for outcome in outcomes],
        checkpoint_files(deployment, model_id),
        usage,
        seq_ids,
    )


def training(model_id: str) -> list[Request]:
    """The numbered requests of a model, from seq_id 1 on."""
    requests: list[Request] = []

    def next_id() -> int:
        return len(requests) + 1

    for step in range(NUM_STEPS):
        data = [datum(12 + i, seed=10 * step + i) for i in range(3)]
        requests.append(http_requests.forward_backward(model_id, next_id(), data))
        requests.append(http_requests.optim_step(model_id, next_id(), 1e-2))
        if step == NUM_STEPS // 2:
            requests.append(http_requests.save_weights(model_id, next_id(), "kept"))
            invalid = [datum(4, seed=1) | {"loss_fn_inputs": {}}]
            requests.append(http_requests.forward_backward(model_id, next_id(), invalid))
    requests.append(http_requests.forward(model_id, next_id(), [datum(20, seed=99)]))
    requests.append(http_requests.save_ephemeral(model_id, next_id(), 1))
    return requests


NUM_NUMBERED = 2 * NUM_STEPS + 4
INVALID_PASS = 2 * (NUM_STEPS // 2 + 1) + 1
"""Where in ``training`` the one request is that must fail."""
EPHEMERAL_SAVE = NUM_NUMBERED - 1


def samples(sampling_session_id: str) -> list[Request]:
    return [
        http_requests.asample(sampling_session_id, seq_id, seed=seq_id)
        for seq_id in range(_NUM_SAMPLES)
    ]


def checkpoint_files(deployment: Deployment, model_id: str) -> dict[str, str]:
    """SHA-256 of every checkpoint file of a model, without what a save that was cut off left."""
    folder = deployment.storage / "checkpoints" / model_id
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path): hashlib.sha256((folder / path).read_bytes()).hexdigest()
        for path in paths
        if not any(part.startswith(".") for part in path.parts)
    }


def _comparable(outcome: Outcome, session_id: str) -> Any:
    found = {"result": outcome.result, "error": outcome.error, "category": outcome.category}
    return without_ids(found, {session_id: "session"}, lambda key: key == "clock_cycle:unique")


class Meddler(Sender):
    """Sends in order backwards, and with each request others that claim its number.

    Going backwards has every request wait for the first, so each is meddled with before it is
    logged, and once more after it has settled.
    """

    def __init__(self) -> None:
        self.refusals: list[int] = []
        """Status of the answer to every request that claimed a used number."""

    async def prepare(self, client: HttpClient, request: Request) -> dict[str, Any]:
        answer = await client.post(request)
        if request.route == "create_model":
            other = {**request.body, "lora_config": {"rank": http_requests.LORA_RANK, "seed": 8}}
            await self._meddle(client, [Request(request.route, other)])
        return answer

    async def send(self, client: HttpClient, requests: Sequence[Request]) -> list[Outcome]:
        promises: list[str] = []
        for request in reversed(requests):
            promises.append(await client.submit(request))
            await self._meddle(client, others_with_its_number(request))
        outcomes: list[Outcome] = []
        for request, promise in zip(requests, reversed(promises), strict=True):
            outcomes.append(await client.outcome(promise))
            await self._meddle(client, others_with_its_number(request))
        return outcomes

    async def _meddle(self, client: HttpClient, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                await client.submit(request)
            except Refused as refusal:
                self.refusals.append(refusal.status)
            else:
                self.refusals.append(200)


def others_with_its_number(request: Request) -> list[Request]:
    """Requests that differ from one in all but its number, valid ones and refused ones."""
    seq_id: int = request.body["seq_id"]
    if request.route == "asample":
        sampling_id: str = request.body["sampling_session_id"]
        refused = Request("asample", {**request.body, "num_samples": 0})
        return [http_requests.asample(sampling_id, seq_id, seed=1000), refused]
    model_id: str = request.body["model_id"]
    data = [datum(9, seed=1000)]
    return [
        http_requests.forward_backward(model_id, seq_id, data),
        http_requests.forward(model_id, seq_id, data),
        http_requests.optim_step(model_id, seq_id, 0.5),
        http_requests.optim_step(model_id, seq_id, -0.5),
        http_requests.save_weights(model_id, seq_id, "meddled"),
    ]
