"""How far the logprobs of sampled tokens are from those that ``forward`` gives of the same tokens.

Policy gradients weigh each token by the ratio of the two, so a trainer and a sampler that disagree
train on noise. docs/performance.md says how the numbers are made.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import Aim, aims_table, caption, progress, table
from shapes import SHAPES, TINY, Shape

from cyclora_core.operations import Array, Datum, LoraConfig, PassBody
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.passes import PackedPasses, PassItem
from cyclora_workers.sampling.sampler import Sampler

PROMPT_TOKENS, NEW_TOKENS = 32, 64
FP32_BOUND = 1e-5
BF16_AIM = 1e-3
HEADER = ["model", "dtype", "tokens", "mean difference", "largest", "KL"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shapes: both [tokens], of the same sampled tokens."""

    sampled: Array
    forward: Array

    @property
    def mean_difference(self) -> float:
        return float(np.abs(self.sampled - self.forward).mean())

    @property
    def largest_difference(self) -> float:
        return float(np.abs(self.sampled - self.forward).max())

    @property
    def divergence(self) -> float:
        """KL of the trainer's distribution from the sampler's, in nats per token.

        The mean of ``r - 1 - log r`` with the ratio ``r`` of the trainer's probability to the
        sampler's: unbiased like the mean of ``-log r``, and with less noise when they are near
        (http://joschu.net/blog/kl-approx.html).
        """
        log_ratio = self.forward - self.sampled
        return float((np.expm1(log_ratio) - log_ratio).mean())


def measure(base_model: BaseModel, num_prompts: int) -> Agreement:
    """Sample with an adapter that does something, then run the training forward over it."""
    state = AdapterState.create(base_model, LoraConfig(8, seed=0))
    for _, lora_B in state.layout.views(state.master_P).values():
        lora_B.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    state.refresh_weights()
    rng = np.random.default_rng(0)
    prompts = rng.integers(4, base_model.vocab_size, (num_prompts, PROMPT_TOKENS), dtype=np.int32)
    sampler = Sampler(base_model, max_kv_tokens=65_536, detokenize=None)
    adapter = state.snapshot_weights()
    for index, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=NEW_TOKENS, seed=index, stop_on_eos=False)
        sampler.admit(str(index), SampleBody(prompt, 1, params), adapter)
    data: list[Datum] = []
    sampled: list[Array] = []
    while not sampler.is_idle:
        for finished in sampler.step():
            if not isinstance(finished.result, SampleResult):
                raise finished.result
            (sequence,) = finished.result.sequences
            ids = np.concatenate([prompts[int(finished.request_id)], sequence.tokens])
            inputs = {
                "target_tokens": ids[1:].astype(np.int64),
                "weights": np.ones(len(ids) - 1, np.float32),
            }
            data.append(Datum(ids[:-1], inputs))
            sampled.append(np.asarray(sequence.logprobs, np.float64))
    passes = PackedPasses(
        base_model,
        [PassItem("forward", state, PassBody("cross_entropy", {}, data), False)],
        max_tokens_per_microbatch=4096,
    )
    for _ in passes:
        pass
    (result,) = passes.results().values()
    if isinstance(result, Exception):
        raise result
    forward = [logprobs[PROMPT_TOKENS - 1 :].astype(np.float64) for logprobs in result.logprobs]
    return Agreement(np.concatenate(sampled), np.concatenate(forward))


def main() -> None:
    names = [shape.name for shape in SHAPES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest shape, 8 prompts")
    parser.add_argument("--shapes", nargs="+", choices=names, default=names)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    shapes = [TINY] if options.quick else [s for s in SHAPES if s.name in options.shapes]
    num_prompts: int = 8 if options.quick else options.prompts
    cases: Sequence[tuple[Shape, str]] = [(s, d) for s in shapes for d in ("float32", "bfloat16")]
    rows: list[list[str]] = []
    aims: list[Aim] = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape, dtype in progress(cases, "sampled against forward"):
            base_model = BaseModel.load(
                shape.name,
                shape.folder(Path(scratch)),
                dtype=getattr(torch, dtype),
                device=torch.device("cpu"),
            )
            found = measure(base_model, num_prompts)
            mean, largest = found.mean_difference, found.largest_difference
            numbers = [f"{number:.1e}" for number in (mean, largest, found.divergence)]
            rows.append([shape.name, dtype, f"{found.sampled.size:,}", *numbers])
            where = f"{shape.name}, {dtype}"
            if dtype == "float32":
                name = "largest difference of sampled and forward logprobs"
                aims.append(Aim(name, where, FP32_BOUND, largest, is_bound_above=True))
            else:
                name = "KL of sampled and forward logprobs"
                aims.append(Aim(name, where, BF16_AIM, found.divergence, is_bound_above=True))
                name = "mean difference of sampled and forward logprobs"
                aims.append(Aim(name, where, BF16_AIM, mean, is_bound_above=True))
    what = (
        f"Logprobs of sampled tokens, {NEW_TOKENS} after each of {num_prompts} random prompts of "
        f"{PROMPT_TOKENS}, one adapter of lora_rank 8"
    )
    print(f"{caption(what)}\n\n{table(HEADER, rows)}\n", flush=True)
    print(aims_table(aims))


if __name__ == "__main__":
    main()
