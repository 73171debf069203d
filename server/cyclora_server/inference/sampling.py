"""From prompts to samples: submitted as every other sample is, then waited for or followed."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect

from cyclora_core import ids, payload
from cyclora_core.errors import Unavailable
from cyclora_core.operations import OperationKind
from cyclora_core.partials import PartialToken
from cyclora_core.records import FUTURE_KEPT_S, Future, FutureState
from cyclora_core.samples import SampleBody, SampleResult
from cyclora_server import validate_sample
from cyclora_server.auth import Identity, held
from cyclora_server.body import offload
from cyclora_server.inference.errors import RefusedField, failure
from cyclora_server.inference.models import Source, check_served
from cyclora_server.inference.prompts import Prompt
from cyclora_server.inference.requests import Request
from cyclora_server.key_watch import Hold
from cyclora_server.services import Services
from cyclora_server.submission import Draft, Target, derived_seed, submit
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import parse

_SESSION_KEPT_S = 2 * FUTURE_KEPT_S
_LOOK_INTERVAL_S = 1.0
"""How often a wait looks whether its client is still there."""
_QUIET_S = 15.0
_MAX_QUEUED = 64


@dataclass(frozen=True, slots=True)
class Order:
    """What to draw for each of the prompts of one request."""

    request: Request
    max_tokens: int
    is_streamed: bool = False
    prompt_logprobs: bool = False
    num_prompt_alternatives: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What came of the prompt of this number: tokens, its result, or (both empty) nothing yet."""

    prompt: int = 0
    tokens: Sequence[PartialToken] = ()
    result: SampleResult | None = None


class Samples:
    """The samples of one request: one for each prompt."""

    def __init__(
        self, services: Services, identity: Identity, base_model: str, request_ids: Sequence[str]
    ) -> None:
        self._services = services
        self._identity = identity
        self._base_model = base_model
        self._request_ids = request_ids
        self._deadline = _now_s() + services.settings.inference_timeout_s

    @classmethod
    async def submit(
        cls,
        services: Services,
        identity: Identity,
        source: Source,
        prompts: Sequence[Prompt],
        order: Order,
    ) -> Samples:
        """Submit all prompts, none of them if one cannot run.

        Raises:
            UserError: a prompt or a field of the request cannot be sampled.
            Overloaded: there is no room for new work.
            Unavailable: nobody would run it.
        """
        services.capacity.check()
        await check_served(services, source.base)
        count = len(prompts)
        first = await services.store.sampling.number(source.session, count, _SESSION_KEPT_S)
        owner_id = source.session.sampling_session_id
        targets = [
            Target(
                identity.tenant_id,
                owner_id,
                first + number,
                OperationKind.SAMPLE,
                source.base.name,
                sent=b"",
                key_id=identity.key.key_id,
                project_id=identity.key.project_id,
            )
            for number in range(count)
        ]
        size = sum(len(prompt.tokens) for prompt in prompts)
        drafts = await offload(8 * size, _drafts, prompts, targets, source, order)
        samples = cls(
            services,
            identity,
            source.base.name,
            [ids.request_id(owner_id, t.seq_id) for t in targets],
        )
        try:
            for target, draft in zip(targets, drafts, strict=True):
                await submit(services, target.submission(draft))
        except BaseException:
            samples.let_go()
            raise
        return samples

    async def results(self, http: HttpRequest) -> list[SampleResult]:
        """All results, once all are final.

        Raises:
            ClientDisconnect: nobody waits for them any more.
            UserError, FailedSample: a sample failed.
            Unavailable: they took longer than is waited for, or the server stops.
            Unauthorized, Forbidden: the key may not be used any more.
        """
        try:
            async with held(self._services, self._identity):
                return [await self._result(request_id, http) for request_id in self._request_ids]
        finally:
            self.let_go()

    async def _result(self, request_id: str, http: HttpRequest) -> SampleResult:
        while True:
            future = await self._services.hub.wait(
                request_id, self._identity.tenant_id, _LOOK_INTERVAL_S
            )
            if future is None or future.state is not FutureState.PENDING:
                return await _result_of(future)
            if await http.is_disconnected():
                raise ClientDisconnect
            self._check_patience()

    async def news(self) -> AsyncGenerator[News, None]:
        """Tokens of all samples as they are decoded, and each result when it is final.

        Tokens of a result that were not news before are not told apart from it. Empty news comes
        after a while of silence.

        Raises:
            UserError, FailedSample, Unavailable, Unauthorized, Forbidden: as ``results`` does.
        """
        identity = self._identity
        with self._services.key_watch.holding(
            identity.key.key_id, is_token=identity.is_token
        ) as hold:
            async with aclosing(self._news(hold)) as news:
                async for each in news:
                    yield each

    async def _news(self, hold: Hold) -> AsyncGenerator[News, None]:
        queue: asyncio.Queue[News | Exception] = asyncio.Queue(_MAX_QUEUED)
        tasks = [
            asyncio.create_task(self._feed(number, request_id, queue, hold))
            for number, request_id in enumerate(self._request_ids)
        ]
        num_open = len(tasks)
        try:
            while num_open:
                try:
                    async with asyncio.timeout(_QUIET_S):
                        news = await queue.get()
                except TimeoutError:
                    news = News()
                if isinstance(news, Exception):
                    raise news
                num_open -= news.result is not None
                yield news
        finally:
            for task in tasks:
                task.cancel()
            self.let_go()

    async def _feed(
        self, number: int, request_id: str, queue: asyncio.Queue[News | Exception], hold: Hold
    ) -> None:
        try:
            async with aclosing(self._follow(number, request_id, hold)) as followed:
                async for news in followed:
                    await queue.put(news)
        except Exception as error:  # noqa: BLE001 - raised again by whoever reads the queue
            await queue.put(error)

    async def _follow(self, number: int, request_id: str, hold: Hold) -> AsyncGenerator[News, None]:
        num_seen = 0
        while True:
            async with hold.waiting():
                progress = await self._services.hub.wait_progress(
                    request_id, num_seen, _LOOK_INTERVAL_S
                )
            if progress.tokens:
                num_seen += len(progress.tokens)
                yield News(number, progress.tokens)
            if progress.is_final:
                future = await self._services.store.futures.get(request_id)
                yield News(number, result=await _result_of(future))
                return
            self._check_patience()

    def _check_patience(self) -> None:
        if self._services.hub.is_closing:
            raise Unavailable("the server is being stopped; try again")
        if _now_s() >= self._deadline:
            timeout_s = self._services.settings.inference_timeout_s
            raise Unavailable(
                f"no answer within {timeout_s:g} s; ask for fewer tokens, or use the Tinker API, "
                "which waits for as long as it takes"
            )

    def let_go(self) -> None:
        """Nobody will ask for these again: what has not ended is cancelled, the rest forgotten."""
        self._services.background.start(self._let_go())

    async def _let_go(self) -> None:
        store = self._services.store
        for request_id in self._request_ids:
            owner_id, _, seq_id = request_id.rpartition(":")
            await store.cancellations.cancel(
                self._identity.tenant_id, self._base_model, owner_id, int(seq_id)
            )
        await store.futures.acknowledge(self._request_ids)


async def _result_of(future: Future | None) -> SampleResult:
    if future is None:
        raise Unavailable("the sample's result is no longer kept; try again")
    if future.error is not None:
        raise failure(future.error)
    data = future.result
    assert data is not None, "a future that is done has a result"
    return await offload(len(data), lambda: SampleResult.from_payload(payload.decode(data)))


def _drafts(
    prompts: Sequence[Prompt], targets: Sequence[Target], source: Source, order: Order
) -> list[Draft]:
    return [
        _draft(prompt, target.request_id, source, order)
        for prompt, target in zip(prompts, targets, strict=True)
    ]


def _draft(prompt: Prompt, request_id: str, source: Source, order: Order) -> Draft:
    request, base = order.request, source.base
    # Numbers that fit no array are refused with the others outside of the vocabulary.
    tokens = np.asarray([min(max(each, -1), 2**31 - 1) for each in prompt.tokens], np.int32)
    num_tokens = len(tokens) + order.max_tokens * request.n
    if len(tokens) + max(order.max_tokens, 1) > base.max_context_length:
        raise RefusedField(
            f"the prompt has {len(tokens)} tokens and max_tokens is {order.max_tokens}; "
            f"{source.name} takes at most {base.max_context_length} together",
            "prompt",
            "context_length_exceeded",
        )
    body = parse(bodies.Sample, _as_sample(request_id, order))
    validate_sample.check_sample(body, tokens, None, base)
    params = validate_sample.sampling_params(body, base, derived_seed(request_id))
    sample = SampleBody(
        prompt_tokens=tokens,
        num_samples=request.n,
        params=dataclasses.replace(params, max_tokens=order.max_tokens, stop_on_eos=True),
        weights_path=source.session.weights_path,
        prompt_logprobs=order.prompt_logprobs,
        topk_prompt_logprobs=order.num_prompt_alternatives,
        is_streamed=order.is_streamed,
    )
    return Draft.of(sample, num_tokens)


def _as_sample(request_id: str, order: Order) -> dict[str, Any]:
    """The request as ``asample`` would get it, so that the same checks apply."""
    request = order.request
    return {
        "sampling_session_id": request_id.rpartition(":")[0],
        "seq_id": 0,
        "num_samples": request.n,
        "prompt": {"chunks": []},
        "sampling_params": {
            "max_tokens": max(order.max_tokens, 1),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "seed": request.seed,
            "stop": stop_strings(request) or None,
        },
        "prompt_logprobs": order.prompt_logprobs,
        "topk_prompt_logprobs": order.num_prompt_alternatives,
    }


def stop_strings(request: Request) -> list[str]:
    """The request's stop strings; those of the sample are checked further.

    Raises:
        RefusedField: there is something else among them.
    """
    stop: Any = request.stop
    stops: list[Any] = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(isinstance(each, str) for each in stops):
        raise RefusedField("stop is not understood; expected a string or a list of them", "stop")
    return stops


def _now_s() -> float:
    return asyncio.get_running_loop().time()
