"""Sampled tokens per second: the sampler, and transformers' ``generate`` with the same model.

Rounds are interleaved in one process, and medians taken over them. Every round has prompts of its
own, so no prefix is known from an earlier one. Ways, for each number of concurrent prompts:

- 1 adapter, 8 adapters: our sampler, all requests at once; adapters of lora_rank 8;
- sequential: our sampler, one request after the other (timed on a few of them);
- generate: transformers, one prompt after the other (timed on a few), and all as one batch, without
  any adapter.

Then ``num_samples`` of one prompt, against as many calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from machine import caption, table
from rich.progress import track
from transformers import AutoModelForCausalLM

from cyclora_core.operations import LoraConfig
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_workers import tiny_chat
from cyclora_workers.adapter import AdapterState, AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.sampling.sampler import Sampler

PROMPT_TOKENS = 32
NEW_TOKENS = 64
NUM_ADAPTERS = 8
NUM_TIMED_ALONE = 2
"""Requests that stand for all where they run one after the other."""

Way = Callable[[], int]
"""Samples prompts that are new, and returns the number of tokens drawn."""


class Bench:
    """The model twice, as our sampler and as transformers', and prompts that never repeat."""

    def __init__(self, dtype: torch.dtype) -> None:
        folder = tiny_chat.model_dir()
        self.base_model = BaseModel.load(
            tiny_chat.MODEL_NAME, folder, dtype=dtype, device=torch.device("cpu")
        )
        self.plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.sampler = Sampler(self.base_model, max_kv_tokens=65_536, detokenize=None)
        self.adapters = [self._adapter(seed) for seed in range(NUM_ADAPTERS)]
        self._rng = np.random.default_rng(0)

    def _adapter(self, seed: int) -> AdapterWeights:
        state = AdapterState.create(self.base_model, LoraConfig(8, seed=seed))
        for _, lora_B in state.layout.views(state.master_P).values():
            lora_B.normal_(std=0.01)
        state.refresh_weights()
        return state.snapshot_weights()

    def prompts(self, num_prompts: int, num_tokens: int = PROMPT_TOKENS) -> np.ndarray[Any, Any]:
        return self._rng.integers(4, self.base_model.vocab_size, (num_prompts, num_tokens))

    def run(self, requests: Sequence[tuple[SampleBody, AdapterWeights | None]]) -> int:
        for index, (body, adapter) in enumerate(requests):
            self.sampler.admit(f"r{index}", body, adapter)
        num_tokens = 0
        while not self.sampler.is_idle:
            for finished in self.sampler.step():
                if not isinstance(finished.result, SampleResult):
                    raise finished.result
                num_tokens += sum(len(each.tokens) for each in finished.result.sequences)
        return num_tokens

    def together(self, num_prompts: int, num_adapters: int) -> Way:
        def way() -> int:
            bodies = [request(prompt) for prompt in self.prompts(num_prompts)]
            return self.run(
                [(body, self.adapters[i % num_adapters]) for i, body in enumerate(bodies)]
            )

        return way

    def one_by_one(self, num_calls: int, num_tokens: int = PROMPT_TOKENS, **options: int) -> Way:
        """Calls with the same prompt in each; a new one for every round."""

        def way() -> int:
            (prompt,) = self.prompts(1, num_tokens)
            calls = [request(prompt, seed=seed, **options) for seed in range(num_calls)]
            return sum(self.run([(call, self.adapters[0])]) for call in calls)

        return way

    def alone(self) -> Way:
        def way() -> int:
            bodies = [request(prompt) for prompt in self.prompts(NUM_TIMED_ALONE)]
            return sum(self.run([(body, self.adapters[0])]) for body in bodies)

        return way

    def generate(self, num_prompts: int, num_calls: int = 1) -> Way:
        @torch.inference_mode()
        def way() -> int:
            num_tokens = 0
            for _ in range(num_calls):
                tokens = torch.from_numpy(self.prompts(num_prompts))
                out = self.plain.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    do_sample=True,
                    min_new_tokens=NEW_TOKENS,
                    max_new_tokens=NEW_TOKENS,
                    pad_token_id=0,
                )
                num_tokens += num_prompts * (out.shape[1] - PROMPT_TOKENS)
            return num_tokens

        return way


def request(prompt: np.ndarray[Any, Any], *, num_samples: int = 1, seed: int = 0) -> SampleBody:
    params = SamplingParams(max_tokens=NEW_TOKENS, seed=seed, stop_on_eos=False)
    return SampleBody(prompt.astype(np.int32), num_samples, params)


def speeds(ways: Mapping[str, Way], num_rounds: int, description: str) -> dict[str, float]:
    """Tokens per second of each way: medians of interleaved rounds, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in track(range(num_rounds + 1), description=description):
        for name, way in ways.items():
            started_s = time.perf_counter()
            num_tokens = way()
            if number:
                found[name].append(num_tokens / (time.perf_counter() - started_s))
    return {name: statistics.median(each) for name, each in found.items()}


def concurrent_table(bench: Bench, counts: Sequence[int], num_rounds: int) -> str:
    rows: list[list[str]] = []
    for count in counts:
        ways = {
            "1 adapter": bench.together(count, 1),
            f"{NUM_ADAPTERS} adapters": bench.together(count, NUM_ADAPTERS),
            "sequential": bench.alone(),
            "generate one by one": bench.generate(1, NUM_TIMED_ALONE),
            "generate batched": bench.generate(count),
        }
        speed = speeds(ways, num_rounds, f"{count} prompts")
        ours = speed["1 adapter"]
        rows.append(
            [
                str(count),
                *(f"{each:,.0f}" for each in speed.values()),
                f"{ours / speed['sequential']:.1f}",
                f"{ours / speed['generate batched']:.2f}",
                f"{speed[f'{NUM_ADAPTERS} adapters'] / ours:.2f}",
            ]
        )
    header = [
        "concurrent",
        "1 adapter",
        f"{NUM_ADAPTERS} adapters",
        "sequential",
        "generate one by one",
        "generate batched",
        "/ sequential",
        "/ generate batched",
        f"{NUM_ADAPTERS} / 1 adapter",
    ]
    return table(header, rows)


def samples_table(bench: Bench, num_rounds: int) -> str:
    rows: list[list[str]] = []
    for num_tokens, num_samples in ((PROMPT_TOKENS, 4), (512, 16)):
        ways = {
            "num_samples": bench.one_by_one(1, num_tokens, num_samples=num_samples),
            "calls": bench.one_by_one(num_samples, num_tokens),
        }
        speed = speeds(ways, num_rounds, f"{num_samples} samples")
        rows.append(
            [
                str(num_tokens),
                str(num_samples),
                *(f"{each:,.0f}" for each in speed.values()),
                f"{speed['num_samples'] / speed['calls']:.1f}",
            ]
        )
    header = ["prompt tokens", "samples", "one request", "as many requests in turn", "ratio"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quick", action="store_true", help="8 and 32 prompts, 3 rounds")
    options = parser.parse_args()
    counts, num_rounds = options.concurrent, options.rounds
    if options.quick:
        counts, num_rounds = [8, 32], 3
    bench = Bench(getattr(torch, options.dtype))
    what = (
        f"Sampled tokens/s, prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new, "
        f"{tiny_chat.MODEL_NAME} in {options.dtype}"
    )
    concurrent = concurrent_table(bench, counts, num_rounds)
    samples = samples_table(bench, num_rounds)
    print(caption(what))
    print(concurrent)
    print()
    print(samples)


if __name__ == "__main__":
    main()
