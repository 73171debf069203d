"""OpenAI's own client against base models and checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import tinker

from contract.builders import datum, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]

ASK: Any = [{"role": "user", "content": "Hello!"}]
GREEDY: Any = {"model": BASE_MODEL, "temperature": 0.0, "max_tokens": 24}


@pytest.fixture
def client(up: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.base_url}/v1", api_key=up.api_key("tenant")) as client:
        yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(messages=ASK, **{**GREEDY, **options})


def streamed(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_answer_ends_with_the_turn(client: openai.OpenAI) -> None:
    answer = chat(client)

    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert "<|im_end|>" not in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.model == BASE_MODEL
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_chat_is_what_the_tinker_api_samples(
    client: openai.OpenAI, service: tinker.ServiceClient, new_model: NewModel
) -> None:
    tokenizer: Any = new_model().get_tokenizer()
    text = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    drawn = (
        sampler.sample(
            tinker.ModelInput.from_ints(prompt),
            num_samples=2,
            sampling_params=tinker.SamplingParams(max_tokens=24, seed=5),
        )
        .result()
        .sequences
    )

    answer = chat(client, temperature=1.0, seed=5, n=2, logprobs=True)

    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(len(each.tokens) for each in drawn)
    for choice, sequence in zip(answer.choices, drawn, strict=True):
        assert choice.message.content == tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        told = [each.logprob for each in choice.logprobs.content]
        assert told == pytest.approx(list(sequence.logprobs or [])[: len(told)])
        assert b"".join(bytes(each.bytes) for each in choice.logprobs.content).decode() == (
            choice.message.content
        )


def test_a_stream_is_the_whole_answer_in_parts(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True)

    chunks = list(chat(client, logprobs=True, stream=True, stream_options={"include_usage": True}))

    assert streamed(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    of_whole, of_parts = (
        usage.model_dump(exclude={"prompt_tokens_details"})
        for usage in (whole.usage, chunks[-1].usage)
    )
    assert of_parts == of_whole
    num_found = chunks[-1].usage.prompt_tokens_details.cached_tokens
    assert num_found == (whole.usage.prompt_tokens - 1) // 16 * 16
    assert len({chunk.id for chunk in chunks}) == 1
    parts = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    told = [entry for part in parts for entry in part.content or []]
    assert told == whole.choices[0].logprobs.content


def test_several_streamed_choices_are_told_apart(client: openai.OpenAI) -> None:
    whole = chat(client, n=3, temperature=1.0, seed=3)

    chunks = list(chat(client, n=3, temperature=1.0, seed=3, stream=True))

    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_text_ends_before_a_stop_string(client: openai.OpenAI, is_streamed: bool) -> None:
    text: str = chat(client).choices[0].message.content
    stop = text[3:6]

    if is_streamed:
        chunks = list(chat(client, stop=[stop, "never"], stream=True))
        got, reason = streamed(chunks), chunks[-1].choices[0].finish_reason
    else:
        (choice,) = chat(client, stop=stop).choices
        got, reason = choice.message.content, choice.finish_reason

    assert got == text[: text.index(stop)]
    assert reason == "stop"


def test_few_tokens_end_an_answer_by_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=BASE_MODEL, messages=ASK, temperature=0.0, max_completion_tokens=2
    )

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_a_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    first, second, other = (
        chat(client, temperature=4.0, top_p=0.99, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    )

    assert first == second
    assert first != other


def test_an_answer_without_a_bound_ends_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=BASE_MODEL, messages=ASK, temperature=0.0)

    assert answer.choices[0].finish_reason == "stop"


def test_prompts_may_be_texts_or_tokens(client: openai.OpenAI, new_model: NewModel) -> None:
    tokenizer: Any = new_model().get_tokenizer()
    texts = ["The capital of", "One plus one is"]
    tokens = [tokenizer.encode(text) for text in texts]

    answers = [
        [choice.text for choice in client.completions.create(prompt=prompt, **GREEDY).choices]
        for prompt in (texts[0], tokens[0], texts, tokens)
    ]

    one, two = answers[2]
    assert answers == [[one], [one], [one, two], [one, two]]


def test_an_echo_tells_the_logprobs_of_the_prompt(
    client: openai.OpenAI, service: tinker.ServiceClient, new_model: NewModel
) -> None:
    tokenizer: Any = new_model().get_tokenizer()
    prompt = "The capital of France"
    tokens = tokenizer.encode(prompt)
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    expected = sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens)).result()

    answer = client.completions.create(
        model=BASE_MODEL, prompt=prompt, max_tokens=0, echo=True, logprobs=2
    )

    (choice,) = answer.choices
    assert choice.text == prompt
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.tokens == [tokenizer.decode([token]) for token in tokens]
    assert choice.logprobs.text_offset == [0, *_ends(choice.logprobs.tokens)]
    assert choice.logprobs.token_logprobs is not None
    first, *rest = choice.logprobs.token_logprobs
    assert first is None
    assert rest == pytest.approx(expected[1:], abs=1e-5)
    assert choice.logprobs.top_logprobs is not None
    assert all(len(each) in (2, 3) for each in choice.logprobs.top_logprobs[1:])


def _ends(tokens: list[str]) -> list[int]:
    return [len("".join(tokens[:number])) for number in range(1, len(tokens))]


def test_an_echo_stands_before_what_is_sampled(client: openai.OpenAI) -> None:
    plain = client.completions.create(prompt="The capital of", logprobs=0, **GREEDY).choices[0]

    echo = client.completions.create(prompt="The capital of", logprobs=0, echo=True, **GREEDY)
    stream = client.completions.create(prompt="The capital of", echo=True, stream=True, **GREEDY)

    assert echo.choices[0].text == "The capital of" + plain.text
    assert "".join(chunk.choices[0].text for chunk in stream) == echo.choices[0].text
    assert plain.logprobs is not None
    assert echo.choices[0].logprobs is not None
    assert echo.choices[0].logprobs.text_offset is not None
    assert plain.logprobs.text_offset is not None
    num_sampled = len(plain.logprobs.text_offset)
    assert echo.choices[0].logprobs.text_offset[-num_sampled:] == [
        each + len("The capital of") for each in plain.logprobs.text_offset
    ]


def test_a_checkpoint_is_a_model_of_its_own(client: openai.OpenAI, new_model: NewModel) -> None:
    model = new_model(rank=16)
    taught = datum(10, seed=5)
    train(model, [taught], 40, learning_rate=5e-3)
    tokens = [*taught.model_input.to_ints(), taught.loss_fn_inputs["target_tokens"].data[-1]]
    paths = [
        model.save_weights_for_sampler("inference").result().path,
        model.save_state("inference").result().path,
    ]
    tokenizer: Any = model.get_tokenizer()

    for path in [*paths, f"{BASE_MODEL};{paths[0]}"]:
        answer = client.completions.create(
            model=path, prompt=[tokens[:3]], max_tokens=8, temperature=0.0
        )
        assert answer.choices[0].text == tokenizer.decode(tokens[3:])
        assert client.models.retrieve(path).id == path
    assert paths[0] in [each.id for each in client.models.list()]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert BASE_MODEL in [each.id for each in client.models.list()]
    assert client.models.retrieve(BASE_MODEL).object == "model"


def test_the_hosted_service_s_path_serves_too(up: Running) -> None:
    with openai.OpenAI(
        base_url=f"{up.base_url}/oai/api/v1", api_key=up.api_key("tenant")
    ) as client:
        assert chat(client).choices[0].message.content


def test_another_tenant_s_checkpoint_is_not_found(
    up: Running, client: openai.OpenAI, new_model: NewModel
) -> None:
    path = new_model().save_weights_for_sampler("private").result().path
    stranger = openai.OpenAI(base_url=f"{up.base_url}/v1", api_key=up.api_key("stranger"))

    with stranger:
        with pytest.raises(openai.NotFoundError) as refused:
            chat(stranger, model=path)
        with pytest.raises(openai.NotFoundError):
            stranger.models.retrieve(path)

    assert refused.value.code == "model_not_found"


def test_a_wrong_key_is_refused(up: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{up.base_url}/v1", api_key="tml-wrong") as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        chat(client)

    assert refused.value.code == "invalid_api_key"


def test_internal_sampling_sessions_are_not_listed(up: Running) -> None:
    key = up.api_key("metered")
    with openai.OpenAI(base_url=f"{up.base_url}/v1", api_key=key) as client:
        chat(client)
        list(chat(client, stream=True))

    sessions = httpx.get(f"{up.base_url}/api/v1/sessions", headers={"X-API-Key": key}).json()
    assert sessions == {"sessions": []}


async def test_streams_of_many_clients_do_not_mix(up: Running) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{up.base_url}/v1", api_key=up.api_key("tenant")
    ) as client:

        async def answer(seed: int, is_streamed: bool) -> str:
            options: Any = {**GREEDY, "temperature": 4.0, "seed": seed, "stream": is_streamed}
            reply: Any = await client.chat.completions.create(messages=ASK, **options)
            if not is_streamed:
                return reply.choices[0].message.content
            return streamed([chunk async for chunk in reply])

        whole = await asyncio.gather(*(answer(seed, False) for seed in range(12)))
        parts = await asyncio.gather(*(answer(seed, True) for seed in range(12)))

    assert whole == parts
    assert len(set(whole)) > 1


def test_a_client_that_leaves_disturbs_nobody(client: openai.OpenAI) -> None:
    with chat(client, max_tokens=1000, stop=["never"], stream=True, temperature=3.0) as stream:
        next(iter(stream))

    assert chat(client).choices[0].message.content
