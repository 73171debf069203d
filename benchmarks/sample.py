"""Sampled tokens per second: the sampler, and transformers' ``generate`` with the same model.

All ways take turns in one process, and every round has prompts of its own, so no prefix is known
from an earlier one. For each number of concurrent prompts:

- 1 adapter, 8 adapters: our sampler, all requests at once; adapters of lora_rank 8;
- generate: transformers, all as one batch, without any adapter.

Beside them one request after the other, by our sampler and by ``generate``, timed on a few. Then
``num_samples`` of one prompt, against as many calls.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from machine import Aim, Plot, aims_table, caption, table
from rounds import Rounds, interleaved
from transformers import AutoModelForCausalLM

from cyclora_core.operations import LoraConfig
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_workers import tiny_chat
from cyclora_workers.adapter import AdapterState, AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.sampling.sampler import Sampler

PROMPT_TOKENS = 32
LONG_PROMPT_TOKENS = 512
NUM_ADAPTERS = 8
NUM_TIMED_ALONE = 2
"""Requests that stand for all where they run one after the other."""

NUM_TIMED_CALLS = 4
"""Calls that stand for as many as there are samples."""

SEVERAL = f"{NUM_ADAPTERS} adapters"
CONCURRENT_HEADER = [
    "concurrent",
    "1 adapter",
    SEVERAL,
    "generate",
    "/ one after the other",
    "/ generate",
    f"{NUM_ADAPTERS} adapters / 1",
    "spread",
]
SAMPLES_HEADER = ["prompt tokens", "samples", "one request", "calls in turn", "ratio"]


@dataclass(frozen=True, slots=True)
class Way:
    """Samples prompts that are new, ``num_tokens`` tokens in all."""

    run: Callable[[], None]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Speeds:
    """Ways that took turns, each with work of its own size."""

    ways: Mapping[str, Way]
    rounds: Rounds

    @classmethod
    def measured(cls, ways: Mapping[str, Way], num_rounds: int, description: str) -> Speeds:
        runs = {name: way.run for name, way in ways.items()}
        return cls(ways, interleaved(runs, num_rounds, description))

    def per_s(self, way: str) -> str:
        return f"{self.rounds.per_s(way, self.ways[way].num_tokens):,.0f}"

    def ratio(self, way: str, over: str) -> float:
        """Of tokens per second."""
        work = self.ways[way].num_tokens / self.ways[over].num_tokens
        return work * self.rounds.speedup(way, over)


class Bench:
    """The model twice, as our sampler and as transformers', and prompts that never repeat."""

    def __init__(self, dtype: torch.dtype, num_new_tokens: int) -> None:
        folder = tiny_chat.model_dir()
        self.base_model = BaseModel.load(
            tiny_chat.MODEL_NAME, folder, dtype=dtype, device=torch.device("cpu")
        )
        self.plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.sampler = Sampler(self.base_model, max_kv_tokens=65_536, detokenize=None)
        self.adapters = [self._adapter(seed) for seed in range(NUM_ADAPTERS)]
        self.num_new_tokens = num_new_tokens
        self._rng = np.random.default_rng(0)

    def _adapter(self, seed: int) -> AdapterWeights:
        state = AdapterState.create(self.base_model, LoraConfig(8, seed=seed))
        for _, lora_B in state.layout.views(state.master_P).values():
            lora_B.normal_(std=0.01)
        state.refresh_weights()
        return state.snapshot_weights()

    def prompts(self, num_prompts: int, num_tokens: int = PROMPT_TOKENS) -> np.ndarray[Any, Any]:
        return self._rng.integers(4, self.base_model.vocab_size, (num_prompts, num_tokens))

    def request(
        self, prompt: np.ndarray[Any, Any], *, num_samples: int = 1, seed: int = 0
    ) -> SampleBody:
        params = SamplingParams(max_tokens=self.num_new_tokens, seed=seed, stop_on_eos=False)
        return SampleBody(prompt.astype(np.int32), num_samples, params)

    def run(self, requests: Sequence[tuple[SampleBody, AdapterWeights | None]]) -> None:
        for index, (body, adapter) in enumerate(requests):
            self.sampler.admit(f"r{index}", body, adapter)
        while not self.sampler.is_idle:
            for finished in self.sampler.step():
                if not isinstance(finished.result, SampleResult):
                    raise finished.result

    def together(self, num_prompts: int, num_adapters: int) -> Way:
        def run() -> None:
            bodies = [self.request(prompt) for prompt in self.prompts(num_prompts)]
            self.run([(body, self.adapters[i % num_adapters]) for i, body in enumerate(bodies)])

        return Way(run, num_prompts * self.num_new_tokens)

    def alone(self) -> Way:
        def run() -> None:
            for prompt in self.prompts(NUM_TIMED_ALONE):
                self.run([(self.request(prompt), self.adapters[0])])

        return Way(run, NUM_TIMED_ALONE * self.num_new_tokens)

    def samples(self, num_samples: int, num_tokens: int) -> Way:
        def run() -> None:
            (prompt,) = self.prompts(1, num_tokens)
            self.run([(self.request(prompt, num_samples=num_samples), self.adapters[0])])

        return Way(run, num_samples * self.num_new_tokens)

    def calls(self, num_calls: int, num_tokens: int) -> Way:
        """The same prompt in each, so all but the first find it computed."""

        def run() -> None:
            (prompt,) = self.prompts(1, num_tokens)
            for seed in range(num_calls):
                self.run([(self.request(prompt, seed=seed), self.adapters[0])])

        return Way(run, num_calls * self.num_new_tokens)

    def generate(self, num_prompts: int, num_calls: int = 1) -> Way:
        @torch.inference_mode()
        def run() -> None:
            for _ in range(num_calls):
                tokens = torch.from_numpy(self.prompts(num_prompts))
                self.plain.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    do_sample=True,
                    min_new_tokens=self.num_new_tokens,
                    max_new_tokens=self.num_new_tokens,
                    pad_token_id=0,
                )

        return Way(run, num_calls * num_prompts * self.num_new_tokens)


def concurrent(bench: Bench, counts: Sequence[int], num_rounds: int, where: str) -> list[Aim]:
    """Print the table over numbers of prompts; returns what it says of the aims."""
    ways = {
        "alone": bench.alone(),
        "generate alone": bench.generate(1, NUM_TIMED_ALONE),
    }
    for count in counts:
        ways[f"{count}, 1 adapter"] = bench.together(count, 1)
        ways[f"{count}, {SEVERAL}"] = bench.together(count, NUM_ADAPTERS)
        ways[f"{count}, generate"] = bench.generate(count)
    found = Speeds.measured(ways, num_rounds, "concurrent prompts")
    rows: list[list[str]] = []
    aims: list[Aim] = []
    for count in counts:
        ours, several, plain = (f"{count}, {way}" for way in CONCURRENT_HEADER[1:4])
        over_alone, over_plain = found.ratio(ours, "alone"), found.ratio(ours, plain)
        over_one = found.ratio(several, ours)
        rows.append(
            [
                str(count),
                *(found.per_s(way) for way in (ours, several, plain)),
                f"{over_alone:.1f}",
                f"{over_plain:.2f}",
                f"{over_one:.2f}",
                f"{found.rounds.spread(ours):.0%}",
            ]
        )
        if count == 8:
            aims.append(Aim("8 concurrent over one after the other", where, 6.5, over_alone))
        if count == 32:
            aims.append(Aim("32 concurrent over a batch of generate", where, 2, over_plain))
            aims.append(Aim("8 adapters over 1, 32 concurrent", where, 0.8, over_one))
        if count == 100:
            aims.append(Aim("100 concurrent over one after the other", where, 20, over_alone))
    what = (
        f"**{where}.** Sampled tokens/s, prompts of {PROMPT_TOKENS} tokens, {bench.num_new_tokens} "
        f"new; one after the other {found.per_s('alone')}, by generate "
        f"{found.per_s('generate alone')}; {num_rounds} rounds"
    )
    plot = Plot(where, CONCURRENT_HEADER[0], CONCURRENT_HEADER[1:4])
    print(f"{caption(what)}\n\n{table(CONCURRENT_HEADER, rows, plot)}\n", flush=True)
    return aims


def samples(bench: Bench, num_rounds: int, where: str) -> list[Aim]:
    """Print the table over ``num_samples``; returns what it says of the aim."""
    rows: list[list[str]] = []
    aims: list[Aim] = []
    for num_tokens, num_samples in ((PROMPT_TOKENS, 4), (LONG_PROMPT_TOKENS, 16)):
        ways = {
            "samples": bench.samples(num_samples, num_tokens),
            "calls": bench.calls(NUM_TIMED_CALLS, num_tokens),
        }
        found = Speeds.measured(ways, num_rounds, f"{num_samples} samples")
        ratio = found.ratio("samples", "calls")
        speeds = [found.per_s(way) for way in ways]
        rows.append([str(num_tokens), str(num_samples), *speeds, f"{ratio:.1f}"])
        if num_samples == 4:
            aims.append(Aim("num_samples=4 over four calls", where, 3.4, ratio))
    what = (
        f"**{where}.** Sampled tokens/s of one prompt, {bench.num_new_tokens} new; {num_rounds} "
        "rounds"
    )
    print(f"{caption(what)}\n\n{table(SAMPLES_HEADER, rows)}\n", flush=True)
    return aims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 32, 100, 128])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--quick", action="store_true", help="8, 32 and 100 prompts, 24 new tokens, 2 rounds"
    )
    options = parser.parse_args()
    counts: list[int] = [8, 32, 100] if options.quick else options.concurrent
    num_rounds: int = 2 if options.quick else options.rounds
    num_new_tokens: int = 24 if options.quick else options.new_tokens
    bench = Bench(getattr(torch, options.dtype), num_new_tokens)
    where = f"{tiny_chat.MODEL_NAME}, {options.dtype}"
    aims = concurrent(bench, counts, num_rounds, where)
    aims += samples(bench, num_rounds, where)
    print(aims_table(aims))


if __name__ == "__main__":
    main()
