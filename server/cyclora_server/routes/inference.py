"""What OpenAI's clients call: chat and completions on base models and checkpoints.

At ``/v1``, where such clients expect it, and at ``/oai/api/v1``, where the hosted service has it
behind its own base URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.body import documented, offload, read_body
from cyclora_server.inference import models, prompts, requests
from cyclora_server.inference.answers import ChatForm, CompletionForm, Form
from cyclora_server.inference.errors import InferenceRoute, RefusedField
from cyclora_server.inference.models import Source
from cyclora_server.inference.prompts import Prompt
from cyclora_server.inference.replies import Reply
from cyclora_server.inference.requests import ChatRequest, CompletionRequest
from cyclora_server.inference.sampling import Order, Samples
from cyclora_server.inference.tokenizer import TextTokenizer
from cyclora_server.services import Json, Services, ServicesDep
from cyclora_server.wire.reading import read_json


async def create_chat_completion(
    http: Request, identity: IdentityDep, services: ServicesDep
) -> Response:
    request = requests.read(ChatRequest, await _json(http, services))
    requests.check_chat(request)
    source = await models.find(services, identity, request.model)
    tokenizer = await services.tokenizers.of(source.base)
    prompt = await offload(
        _size(request.messages),
        prompts.of_messages,
        request.messages,
        request.chat_template_kwargs,
        tokenizer,
    )
    max_tokens = request.most_tokens or _default_tokens(services, source, prompt)
    order = Order(request, max_tokens, request.stream)
    form = ChatForm(tokenizer, has_logprobs=request.logprobs)
    return await _reply(http, identity, services, source, tokenizer, [prompt], order, form)


async def create_completion(
    http: Request, identity: IdentityDep, services: ServicesDep
) -> Response:
    request = requests.read(CompletionRequest, await _json(http, services))
    requests.check_completion(request)
    source = await models.find(services, identity, request.model)
    tokenizer = await services.tokenizers.of(source.base)
    found = await offload(_size(request.prompt), prompts.of_completion, request.prompt, tokenizer)
    order = Order(
        request,
        request.max_tokens,
        request.stream,
        prompt_logprobs=request.echo and request.logprobs is not None,
        num_prompt_alternatives=(request.logprobs or 0) if request.echo else 0,
    )
    form = CompletionForm(tokenizer, has_logprobs=request.logprobs is not None)
    return await _reply(
        http, identity, services, source, tokenizer, found, order, form, is_echo=request.echo
    )


async def list_models(identity: IdentityDep, services: ServicesDep) -> Json:
    return {"object": "list", "data": await models.listed(services, identity)}


async def get_model(name: str, identity: IdentityDep, services: ServicesDep) -> Json:
    return await models.described(services, identity, name)


async def _reply(
    http: Request,
    identity: Identity,
    services: Services,
    source: Source,
    tokenizer: TextTokenizer,
    found: Sequence[Prompt],
    order: Order,
    form: Form,
    *,
    is_echo: bool = False,
) -> Response:
    _check_num_choices(order, found)
    created_s = services.clock.now_ms() // 1000
    reply = Reply(order.request, tokenizer, form, found, created_s, is_echo)
    samples = await Samples.submit(services, identity, source, found, order)
    if order.is_streamed:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            reply.events(samples), media_type="text/event-stream", headers=headers
        )
    results = await samples.results(http)
    size = 64 * sum(len(s.tokens) for result in results for s in result.sequences)
    return JSONResponse(await offload(size, reply.whole, results))


def _check_num_choices(order: Order, found: Sequence[Prompt]) -> None:
    num_choices = len(found) * order.request.n
    if num_choices > requests.MAX_CHOICES:
        raise RefusedField(
            f"{len(found)} prompts with n {order.request.n} are {num_choices} choices; at most "
            f"{requests.MAX_CHOICES} are accepted",
            "n",
        )


def _default_tokens(services: Services, source: Source, prompt: Prompt) -> int:
    room = source.base.max_context_length - len(prompt.tokens)
    return max(1, min(services.settings.default_completion_tokens, room))


async def _json(http: Request, services: Services) -> Any:
    raw = await read_body(http, services)
    return await offload(len(raw), read_json, raw)


def _size(value: Any) -> int:
    """Characters of the texts in a request, roughly; tokens count a few each."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        fields: dict[str, Any] = value
        return sum(_size(each) for each in fields.values())
    if isinstance(value, list):
        items: list[Any] = value
        return sum(_size(each) for each in items)
    return 4


def _router(prefix: str, *, is_documented: bool) -> APIRouter:
    router = APIRouter(
        prefix=prefix,
        tags=["inference"],
        dependencies=needs_key,
        route_class=InferenceRoute,
        include_in_schema=is_documented,
    )
    router.post(
        "/chat/completions",
        summary="The assistant's answer to messages",
        openapi_extra=documented(ChatRequest),
        response_class=Response,
    )(create_chat_completion)
    router.post(
        "/completions",
        summary="What follows prompts",
        openapi_extra=documented(CompletionRequest),
        response_class=Response,
    )(create_completion)
    router.get("/models", summary="Base models, and the tenant's sampler checkpoints")(list_models)
    router.get("/models/{name:path}", summary="One model by its name")(get_model)
    return router


routers = (_router("/v1", is_documented=True), _router("/oai/api/v1", is_documented=False))
