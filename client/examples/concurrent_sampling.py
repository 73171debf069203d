"""Why to ask for many samples at once: the same work, one by one and together.

A server that batches decodes many rows in about the time of one. What you should see: eight prompts
asked together take far less time than asked one after the other, and four samples of one prompt are
cheaper in one call than in four. The figures of the hosted service, from its public documentation,
stand beside yours: 6.5x and 3.4x.

    python concurrent_sampling.py --max-tokens 64
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import tinker
from tinker import types

try:  # get_tokenizer() then works from any machine, without the Hugging Face hub
    from cyclora_client.connect import connect
except ImportError:  # the official SDK alone, against the hosted service
    connect = tinker.ServiceClient

PROMPTS = [
    "What is the capital of Italy?",
    "What colour is a lemon?",
    "Tell me a joke.",
    "What is the opposite of big?",
    "Who puts out fires?",
    "Count from 3 to 9.",
    "What does a cow eat?",
    "How many legs does a spider have?",
]
NUM_SAMPLES = 4


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare sampling one by one and together.")
    parser.add_argument("--base-url", help="server; default: TINKER_BASE_URL")
    parser.add_argument("--api-key", help="key; default: TINKER_API_KEY")
    parser.add_argument("--base-model", default="cyclora/tiny-chat")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of every sample")
    return parser.parse_args()


async def seconds(work: Awaitable[Any]) -> float:
    started_mono_s = time.monotonic()
    await work
    return time.monotonic() - started_mono_s


async def run(options: argparse.Namespace) -> None:
    service = connect(base_url=options.base_url, api_key=options.api_key)
    client = await service.create_sampling_client(base_model=options.base_model)
    tokenizer: Any = client.get_tokenizer()
    prompts = [
        types.ModelInput.from_ints(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )
        for text in PROMPTS
    ]
    # No stop token, so every sample has the same length and the times compare like with like.
    params = types.SamplingParams(max_tokens=options.max_tokens, temperature=1.0, stop=[])

    async def one_after_the_other(calls: list[types.ModelInput]) -> None:
        for prompt in calls:
            await client.sample(prompt, 1, params)

    async def together(calls: list[types.ModelInput], num_samples: int) -> None:
        # sample() submits at once and returns a future; awaiting it is all that gather does.
        await asyncio.gather(*(client.sample(prompt, num_samples, params) for prompt in calls))

    await together(prompts[:1], 1)  # not timed: the first call also opens connections

    serial_s = await seconds(one_after_the_other(prompts))
    gathered_s = await seconds(together(prompts, 1))
    four_calls_s = await seconds(one_after_the_other(prompts[:1] * NUM_SAMPLES))
    one_call_s = await seconds(together(prompts[:1], NUM_SAMPLES))
    all_s = await seconds(together(prompts, NUM_SAMPLES))

    num_prompts = len(prompts)
    # Four times the samples of the serial run, so the serial time counts four times.
    all_speed_up = NUM_SAMPLES * serial_s / all_s
    num_tokens = num_prompts * NUM_SAMPLES * options.max_tokens
    print(f"{options.base_model}, {options.max_tokens} tokens a sample")
    print(f"{'':<42}{'seconds':>9}{'speed-up':>10}{'hosted':>8}")
    print(f"{f'{num_prompts} prompts, one after the other':<42}{serial_s:>9.2f}")
    print(
        f"{'  the same, together':<42}{gathered_s:>9.2f}{serial_s / gathered_s:>9.1f}x{'6.5x':>8}"
    )
    print(f"{f'1 prompt, {NUM_SAMPLES} calls of one sample':<42}{four_calls_s:>9.2f}")
    print(
        f"{f'  the same, one call of {NUM_SAMPLES} samples':<42}{one_call_s:>9.2f}"
        f"{four_calls_s / one_call_s:>9.1f}x{'3.4x':>8}"
    )
    print(
        f"{f'{num_prompts} prompts x {NUM_SAMPLES} samples, together':<42}{all_s:>9.2f}"
        f"{all_speed_up:>9.1f}x"
    )
    print(f"{num_tokens / all_s:.0f} tokens/s in the last row")


if __name__ == "__main__":
    asyncio.run(run(read_options()))
