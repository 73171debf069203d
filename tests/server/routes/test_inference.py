"""Chat and completions, with samples settled by hand; OpenAI's client is in tests/contract."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from cyclora_core.errors import ErrorCategory
from cyclora_core.ids import CheckpointKind
from cyclora_core.partials import PartialToken
from cyclora_core.records import OperationError
from cyclora_core.samples import SampledSequence, SampleResult, StopReason
from cyclora_core.store.memory import MemoryReading
from server.doubles.builders import KEY, STRANGER_KEY, TENANT, checkpoint
from server.doubles.store import StoreDouble
from server.inference.builders import (
    CHAT,
    TURN_END,
    TokenizerStorage,
    result,
    tokenizer,
    tokens_of,
)
from server.inference.conftest import Submitted, settings, storage, store, submitted

__all__ = ["settings", "storage", "store", "submitted"]

CHAT_BODY: dict[str, Any] = {
    "model": CHAT.name,
    "messages": [{"role": "user", "content": "Hello!"}],
}
TEXT_BODY: dict[str, Any] = {"model": CHAT.name, "prompt": "One"}


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://server/v1",
            headers={"Authorization": f"Bearer {KEY}"},
        ) as client,
    ):
        yield client


async def run_until_idle(submitted: Submitted, count: int = 1) -> None:
    """Let requests get as far as their samples; tokenizing happens in threads."""
    async with asyncio.timeout(10):
        while len(submitted.all) < count:
            await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)


async def answered(
    client: httpx.AsyncClient,
    submitted: Submitted,
    body: dict[str, Any],
    *results: SampleResult,
    path: str = "/chat/completions",
) -> httpx.Response:
    asking = asyncio.create_task(client.post(path, json=body))
    await run_until_idle(submitted, len(results))
    submitted.settle(*results)
    return await asking


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


async def test_a_chat_is_sampled_with_the_template_and_answered_without_its_end(
    client: httpx.AsyncClient, submitted: Submitted
) -> None:
    answer = await answered(client, submitted, CHAT_BODY, result("Hi there"))

    (body,) = submitted.bodies
    prompt = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    assert body.prompt_tokens.tolist() == tokens_of(prompt)
    assert body.params.max_tokens == 100
    assert body.params.stop_on_eos
    assert not body.is_streamed
    value = answer.json()
    assert value["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi there", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    num_prompt, num_sampled = len(body.prompt_tokens), len(tokens_of("Hi there")) + 1
    assert value["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_sampled,
        "total_tokens": num_prompt + num_sampled,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (value["object"], value["model"]) == ("chat.completion", CHAT.name)


async def test_options_reach_the_sample(client: httpx.AsyncClient, submitted: Submitted) -> None:
    options = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": -1,
        "stop": ["a", "b"],
        "max_completion_tokens": 5,
        "user": "me",
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "tools": [],
    }

    await answered(client, submitted, CHAT_BODY | options, result("x", "y"))

    (body,) = submitted.bodies
    params = body.params
    assert (body.num_samples, params.temperature, params.top_p, params.top_k) == (2, 0.5, 0.9, 7)
    assert (params.seed, params.stop_strings, params.max_tokens) == (2**64 - 1, ["a", "b"], 5)
    assert params.stop_on_eos
    assert submitted.all[0].num_tokens == len(body.prompt_tokens) + 2 * 5


async def test_the_default_length_leaves_room_for_the_prompt(
    client: httpx.AsyncClient, submitted: Submitted
) -> None:
    long = [{"role": "user", "content": "a b c d e f g h i j " * 18}]

    await answered(client, submitted, CHAT_BODY | {"messages": long}, result("x"))

    (body,) = submitted.bodies
    assert len(body.prompt_tokens) > CHAT.max_context_length - 100
    assert body.params.max_tokens == CHAT.max_context_length - len(body.prompt_tokens)


async def test_text_parts_are_put_together_and_developers_are_the_system(
    client: httpx.AsyncClient, submitted: Submitted
) -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    messages = [{"role": "developer", "content": parts}, *CHAT_BODY["messages"]]

    await answered(client, submitted, CHAT_BODY | {"messages": messages}, result("x"))

    (body,) = submitted.bodies
    # The decoded prompt without its special tokens.
    assert tokenizer().decode(body.prompt_tokens.tolist()).startswith("system\nBe kind.")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "tinker://nonsense"}, "model"),
        ({"model": ""}, "model"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, None),
        ({"top_p": 0}, None),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": [3]}, "stop"),
        ({"stop": ""}, None),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "messages.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0",
        ),
        ({"chat_template_kwargs": {"messages": []}}, None),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(
    client: httpx.AsyncClient, submitted: Submitted, changes: dict[str, Any], param: str | None
) -> None:
    answer = await client.post("/chat/completions", json=CHAT_BODY | changes)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert submitted.all == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 3}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True, "logprobs": 0, "stream": True}, "stream"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": ["x"] * 65, "n": 2}, "n"),
        ({"prompt": ""}, None),
        ({"prompt": [5000]}, None),
        ({"prompt": [-1]}, None),
        ({"prompt": [2**70]}, None),
        ({"prompt": [[5], [5000]]}, None),
    ],
)
async def test_a_completion_that_cannot_be_had_is_refused_as_a_whole(
    client: httpx.AsyncClient, submitted: Submitted, changes: dict[str, Any], param: str | None
) -> None:
    answer = await client.post("/completions", json=TEXT_BODY | changes)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert submitted.all == []


async def test_a_prompt_that_does_not_fit_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.post("/completions", json=TEXT_BODY | {"max_tokens": 1000})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
@pytest.mark.parametrize("raw", [b"{", b"[]", b"null", b"5"])
async def test_a_body_that_is_no_request_is_refused(
    client: httpx.AsyncClient, path: str, raw: bytes
) -> None:
    answer = await client.post(path, content=raw)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("model", ["org/none", checkpoint().path, f"org/tiny;{checkpoint().path}"])
async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient, model: str) -> None:
    answer = await client.post("/chat/completions", json=CHAT_BODY | {"model": model})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")


async def test_another_tenant_s_checkpoint_looks_like_none(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    path = store.checkpoints.put(checkpoint(base_model=CHAT.name)).path
    headers = {"Authorization": f"Bearer {STRANGER_KEY}"}

    answer = await client.post(
        "/chat/completions", json=CHAT_BODY | {"model": path}, headers=headers
    )
    shown = await client.get(f"/models/{path}", headers=headers)
    listed = await client.get("/models", headers=headers)

    assert (answer.status_code, shown.status_code) == (404, 404)
    assert path not in listed.text


async def test_a_body_that_is_too_large_is_refused(client: httpx.AsyncClient) -> None:
    body = CHAT_BODY | {"messages": [{"role": "user", "content": "x" * (65 * 1024 * 1024)}]}

    answer = await client.post("/chat/completions", content=json.dumps(body))

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_without_a_key_there_is_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.get("/models", headers={"Authorization": ""})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (401, "invalid_api_key")


async def test_the_tinker_way_to_send_a_key_is_known_too(client: httpx.AsyncClient) -> None:
    headers = {"Authorization": "", "X-API-Key": KEY}

    assert (await client.get("/models", headers=headers)).status_code == 200


async def test_a_full_store_is_back_pressure(
    app: FastAPI, client: httpx.AsyncClient, store: StoreDouble, submitted: Submitted
) -> None:
    store.memory.reading = MemoryReading(used_bytes=99, limit_bytes=100)
    await app.state.services.capacity.measure()

    answer = await client.post("/chat/completions", json=CHAT_BODY)

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert submitted.all == []


async def test_a_base_model_without_a_worker_is_unavailable(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.workers.records.pop()

    answer = await client.post("/chat/completions", json=CHAT_BODY)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("category", "status"), [(ErrorCategory.USER, 400), (ErrorCategory.SERVER, 500)]
)
async def test_a_sample_that_fails_says_why(
    client: httpx.AsyncClient, submitted: Submitted, category: ErrorCategory, status: int
) -> None:
    asking = asyncio.create_task(client.post("/chat/completions", json=CHAT_BODY))
    await run_until_idle(submitted)
    (submission,) = submitted.all
    submitted.store.futures.settle(
        submission.request_id, error=OperationError("no such weather", category)
    )

    answer = await asking

    assert answer.status_code == status
    assert answer.json()["error"]["message"] == "no such weather"


async def test_results_that_were_told_are_let_go(
    client: httpx.AsyncClient, submitted: Submitted, store: StoreDouble, app: FastAPI
) -> None:
    await answered(client, submitted, CHAT_BODY, result("x"))
    await app.state.services.background.finish(timeout_s=30)

    assert store.futures.acknowledged == [submitted.all[0].request_id]
    assert store.cancellations.cancelled == []


async def test_each_tenant_and_each_weights_have_one_internal_session(
    client: httpx.AsyncClient, submitted: Submitted, store: StoreDouble
) -> None:
    path = store.checkpoints.put(checkpoint(kind=CheckpointKind.SAMPLER, base_model=CHAT.name)).path
    before = set(store.sampling.records)
    models = [CHAT.name, CHAT.name, path, f"{CHAT.name};{path}"]
    tasks = [
        asyncio.create_task(client.post("/chat/completions", json=CHAT_BODY | {"model": model}))
        for model in models
    ]
    await run_until_idle(submitted, len(models))
    submitted.settle(*(result("x") for _ in models))
    for task in tasks:
        assert (await task).status_code == 200

    made = [store.sampling.records[key] for key in set(store.sampling.records) - before]
    assert {each.weights_path for each in made} == {None, path}
    assert {each.tenant_id for each in made} == {TENANT}
    assert {each.weights_path for each in submitted.bodies} == {None, path}
    assert len({each.request_id for each in submitted.all}) == len(models)


async def test_prompts_are_answered_in_order(
    client: httpx.AsyncClient, submitted: Submitted
) -> None:
    body = TEXT_BODY | {"prompt": ["One", "Two"], "n": 2}

    answer = await answered(
        client, submitted, body, result("a", "b"), result("c", "d"), path="/completions"
    )

    value = answer.json()
    assert [(each["index"], each["text"]) for each in value["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (3, "d"),
    ]
    assert [each.params.max_tokens for each in submitted.bodies] == [16, 16]


async def test_an_echo_without_new_tokens_tells_about_the_prompt(
    client: httpx.AsyncClient, submitted: Submitted
) -> None:
    prompt = tokens_of("One two")
    size = len(prompt)
    empty = SampledSequence(np.zeros(0, np.int32), np.zeros(0, np.float32), StopReason.LENGTH)
    found = SampleResult(
        [empty],
        prompt_logprobs=np.array([np.nan, *([-np.inf] * (size - 1))], np.float32),
        topk_prompt_tokens=np.full((size, 1), tokens_of("x")[0], np.int32),
        topk_prompt_logprobs=np.full((size, 1), -0.5, np.float32),
    )
    body = TEXT_BODY | {"prompt": "One two", "max_tokens": 0, "echo": True, "logprobs": 1}

    answer = await answered(client, submitted, body, found, path="/completions")

    (choice,) = answer.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("One two", "length")
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == "One two"
    assert logprobs["token_logprobs"] == [None, *([-9999.0] * (size - 1))]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1]["x"] == -0.5
    (sent,) = submitted.bodies
    assert (sent.params.max_tokens, sent.prompt_logprobs, sent.topk_prompt_logprobs) == (0, True, 1)


async def test_tokens_are_sent_as_they_are_shown(
    client: httpx.AsyncClient, submitted: Submitted, store: StoreDouble
) -> None:
    body = CHAT_BODY | {"stream": True, "stream_options": {"include_usage": True}}
    asking = asyncio.create_task(client.post("/chat/completions", json=body))
    await run_until_idle(submitted)
    (submission,) = submitted.all
    assert submitted.bodies[0].is_streamed
    tokens = tokens_of("Hi there, you")
    for at, token in enumerate(tokens[:-1]):
        store.futures.show(submission.request_id, PartialToken(0, token, -float(at + 1)))
        for _ in range(20):
            await asyncio.sleep(0)
    submitted.settle(result("Hi there, you"))

    answer = await asking

    *chunks, last, done = events(answer)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(tokens) + 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(parts) == "Hi there, you"
    assert len(chunks) == len(tokens) + 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [
        *([None] * len(tokens)),
        "stop",
    ]
    assert store.futures.acknowledged == [submission.request_id]


async def test_a_stream_without_any_partial_is_the_result(
    client: httpx.AsyncClient, submitted: Submitted
) -> None:
    body = CHAT_BODY | {"stream": True}

    answer = await answered(client, submitted, body, result("Hi", reason=StopReason.LENGTH))

    *_, last, done = events(answer)
    assert last["choices"][0]["delta"] == {"content": "Hi"}
    assert last["choices"][0]["finish_reason"] == "length"
    assert done == "[DONE]"


async def test_a_result_that_contradicts_what_was_sent_ends_the_stream_with_an_error(
    client: httpx.AsyncClient, submitted: Submitted, store: StoreDouble
) -> None:
    asking = asyncio.create_task(
        client.post("/chat/completions", json=CHAT_BODY | {"stream": True})
    )
    await run_until_idle(submitted)
    store.futures.show(submitted.all[0].request_id, PartialToken(0, tokens_of("No")[0], -1.0))
    for _ in range(50):
        await asyncio.sleep(0)
    submitted.settle(result("Yes"))

    last = events(await asking)[-1]

    assert last["error"]["type"] == "server_error"
    assert "error_id" in last["error"]["message"]


async def test_a_sample_that_fails_ends_its_stream_with_the_reason(
    client: httpx.AsyncClient, submitted: Submitted, store: StoreDouble
) -> None:
    asking = asyncio.create_task(
        client.post("/chat/completions", json=CHAT_BODY | {"stream": True})
    )
    await run_until_idle(submitted)
    error = OperationError("diverged", ErrorCategory.USER)
    store.futures.settle(submitted.all[0].request_id, error=error)

    last = events(await asking)[-1]

    assert last["error"]["message"] == "diverged"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_server_that_stops_keeps_nobody_waiting(
    app: FastAPI, client: httpx.AsyncClient, submitted: Submitted, is_streamed: bool
) -> None:
    asking = asyncio.create_task(
        client.post("/chat/completions", json=CHAT_BODY | {"stream": is_streamed})
    )
    await run_until_idle(submitted)
    app.state.services.hub.close()

    answer = await asking

    assert "being stopped" in answer.text
    assert is_streamed or answer.status_code == 503


async def test_a_stream_that_nobody_reads_any_more_is_cancelled(
    client: httpx.AsyncClient, submitted: Submitted, store: StoreDouble, app: FastAPI
) -> None:
    asking = asyncio.create_task(
        client.post("/chat/completions", json=CHAT_BODY | {"stream": True})
    )
    await run_until_idle(submitted)

    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await app.state.services.background.finish(timeout_s=30)

    (submission,) = submitted.all
    assert store.cancellations.cancelled == [submission.request_id]
    assert store.futures.acknowledged == [submission.request_id]
    assert app.state.services.hub.num_waiting == 0


async def test_models_are_base_models_and_own_sampler_checkpoints(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    put = store.checkpoints.put
    shown = put(checkpoint("a", CheckpointKind.SAMPLER, base_model=CHAT.name))
    put(checkpoint("c", CheckpointKind.TRAINING, base_model=CHAT.name))

    value = (await client.get("/models")).json()

    assert [each["id"] for each in value["data"]] == ["org/tiny", CHAT.name, shown.path]
    assert value["data"][1]["created"] == 5
    assert value["data"][2]["parent"] == CHAT.name
    assert (await client.get(f"/models/{shown.path}")).json() == value["data"][2]
    assert (await client.get(f"/models/{CHAT.name}")).json() == value["data"][1]


async def test_a_tokenizer_is_read_once(
    client: httpx.AsyncClient, submitted: Submitted, storage: TokenizerStorage
) -> None:
    await answered(client, submitted, CHAT_BODY, result("x"))
    num_reads = storage.num_reads

    asking = asyncio.create_task(client.post("/chat/completions", json=CHAT_BODY))
    await run_until_idle(submitted, 2)
    submitted.store.futures.settle(submitted.all[1].request_id, result("x"))
    await asking

    assert storage.num_reads == num_reads


async def test_a_base_model_without_a_chat_template_still_completes(
    client: httpx.AsyncClient, submitted: Submitted, storage: TokenizerStorage
) -> None:
    storage.changed["tokenizer_config.json"] = b"{}"

    refused = await client.post("/chat/completions", json=CHAT_BODY)
    answer = await answered(client, submitted, TEXT_BODY, result("x"), path="/completions")

    assert refused.status_code == 400
    assert "no chat template" in refused.json()["error"]["message"]
    assert answer.json()["choices"][0]["text"] == "x"


async def test_the_end_of_a_turn_is_not_told_with_the_logprobs(
    client: httpx.AsyncClient, submitted: Submitted
) -> None:
    answer = await answered(client, submitted, CHAT_BODY | {"logprobs": True}, result("Hi"))

    told = answer.json()["choices"][0]["logprobs"]["content"]
    assert TURN_END not in tokens_of("Hi")
    assert "".join(each["token"] for each in told) == "Hi"
    assert [each["logprob"] for each in told] == [-float(at + 1) for at in range(len(told))]
    assert bytes(byte for each in told for byte in each["bytes"]) == b"Hi"
