"""Tenants that come, train a little, sample, and leave nothing behind but their history."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from faults import http_requests
from faults.http_client import HttpClient, Outcome
from faults.http_requests import Request, datum

_MAX_AT_ONCE = 8
_NUM_STEPS = 3


class Parting(Enum):
    """What a client still has running when it finishes its session."""

    AT_REST = auto()
    TRAINING = auto()
    """Passes and steps, and a save of ephemeral weights behind them."""
    SAMPLING = auto()
    """Samples from ephemeral weights, which go with the session: those not begun may fail."""
    UNSAID = auto()
    """The models are unloaded one by one, as old SDKs do, and then the session is finished."""


_PARTINGS = [Parting.AT_REST] * 5 + [Parting.TRAINING] * 2 + [Parting.SAMPLING, Parting.UNSAID]


@dataclass
class Churn:
    """What has been done so far."""

    seed: int
    ended_models: list[str] = field(default_factory=list[str])
    num_sessions: int = 0
    errors: list[str] = field(default_factory=list[str])

    async def play_round(
        self, client: HttpClient, api_keys: Sequence[str], num_sessions: int
    ) -> Sequence[str]:
        """The next sessions, a few at a time, each of the next tenant; returns their models."""
        at_once = asyncio.Semaphore(_MAX_AT_ONCE)

        async def play(index: int) -> None:
            async with at_once:
                tenant = client.as_tenant(api_keys[index % len(api_keys)])
                visit = _Visit(tenant, random.Random(f"{self.seed}-{index}"))
                try:
                    self.ended_models += await visit.play()
                except Exception as error:  # noqa: BLE001 - a finding, reported at the end
                    self.errors.append(f"session {index}: {type(error).__name__}: {error}")

        num_before = len(self.ended_models)
        first = self.num_sessions
        self.num_sessions += num_sessions
        await asyncio.gather(*(play(index) for index in range(first, self.num_sessions)))
        return self.ended_models[num_before:]


class _Visit:
    """One session, from its first request to its last."""

    def __init__(self, client: HttpClient, rng: random.Random) -> None:
        self._client = client
        self._rng = rng
        self._session_id = ""
        self._num_samplers = 0

    async def play(self) -> list[str]:
        """Returns the ids of its models, all of which have ended."""
        self._session_id = await self._client.open_session()
        parting = self._rng.choice(_PARTINGS)
        num_models = self._rng.choice((1, 1, 1, 2))
        models = [await self._train(model_seq_id) for model_seq_id in range(num_models)]
        model_id, seq_id = models[0]
        waiting: list[Request] = []
        if parting is Parting.TRAINING:
            waiting = self._steps(model_id, seq_id)
        elif parting is Parting.SAMPLING:
            waiting = await self._samples(model_id, seq_id)
        promises = [await self._client.submit(request) for request in waiting]
        if parting is Parting.UNSAID:
            for each, _ in models:
                unload = Request("unload_model", {"model_id": each})
                (await self._client.run(unload)).value()
        await self._client.post(http_requests.finish_session(self._session_id))
        for promise in promises:
            outcome = await self._client.outcome(promise)
            if parting is not Parting.SAMPLING or outcome.category != "user":
                outcome.value()
        return [each for each, _ in models]

    async def _train(self, model_seq_id: int) -> tuple[str, int]:
        """A model with a few steps, saved and sampled; returns it and its next seq_id."""
        creating = http_requests.create_model(self._session_id, model_seq_id)
        model_id: str = (await self._client.run(creating)).value()["model_id"]
        requests: list[Request] = []
        for _ in range(_NUM_STEPS):
            requests += self._steps(model_id, len(requests) + 1)[:2]
        requests.append(http_requests.save_weights(model_id, len(requests) + 1, "kept"))
        await self._run_all(requests)
        await self._client.delete(f"training_runs/{model_id}/checkpoints/weights/kept")
        await self._run_all(await self._samples(model_id, len(requests) + 1))
        return model_id, len(requests) + 2

    def _steps(self, model_id: str, seq_id: int) -> list[Request]:
        """A pass, a step, and a save behind them."""
        data = [datum(self._rng.randint(8, 32), self._rng.randrange(1000)) for _ in range(2)]
        return [
            http_requests.forward_backward(model_id, seq_id, data),
            http_requests.optim_step(model_id, seq_id + 1, 1e-3),
            http_requests.save_ephemeral(model_id, seq_id + 2, self._next_sampler()),
        ]

    async def _samples(self, model_id: str, seq_id: int) -> list[Request]:
        """Saves ephemeral weights; samples of them that are yet to be sent."""
        save = http_requests.save_ephemeral(model_id, seq_id, self._next_sampler())
        sampler: str = (await self._client.run(save)).value()["sampling_session_id"]
        return [http_requests.asample(sampler, number, seed=number) for number in range(2)]

    async def _run_all(self, requests: Sequence[Request]) -> list[Outcome]:
        """Send requests without awaiting any, then await them all."""
        promises = [await self._client.submit(request) for request in requests]
        outcomes = [await self._client.outcome(promise) for promise in promises]
        for outcome in outcomes:
            outcome.value()
        return outcomes

    def _next_sampler(self) -> int:
        self._num_samplers += 1
        return self._num_samplers
