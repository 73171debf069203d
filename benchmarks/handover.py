"""From save_weights_and_get_sampling_client to the first sampled token, through the SDK.

Each round trains one step, saves and samples one token. Beside it, by the engine alone: what an
optim_step costs more when the weights before it were frozen for samples, which it must leave alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import tinker
import torch
from deployed import BASE_MODEL, data, new_client, running, submit_step
from machine import Aim, Plot, aims_table, caption, progress, table
from rounds import Rounds, interleaved
from tinker import types

from cyclora_core.operations import LoraConfig, OptimStepBody
from cyclora_workers import tiny_chat
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.optimizer import optimizer_step

NUM_WARM_UPS = 3
STEPS_PER_ROUND = 10
"""Of the optimizer alone: one is too short to be timed."""
MAX_FREEZE_MS = 10
HEADER = ["lora_rank", "save", "first token", "both"]
FREEZE_HEADER = ["lora_rank", "optim_step", "freeze and optim_step", "on top"]


def round_ms(model: tinker.TrainingClient, seed: int) -> tuple[float, float]:
    """Milliseconds of one save, and of the first sample behind it."""
    submit_step(model, data(2, 32, seed)).result()
    params = types.SamplingParams(max_tokens=1, seed=1)
    began_mono_s = time.perf_counter()
    sampler = model.save_weights_and_get_sampling_client().result()
    saved_mono_s = time.perf_counter()
    sampler.sample(types.ModelInput.from_ints([5, 6, 7]), 1, params).result()
    return 1000 * (saved_mono_s - began_mono_s), 1000 * (time.perf_counter() - saved_mono_s)


def through_sdk(ranks: Sequence[int], num_rounds: int) -> str:
    """A captioned table."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch) / "data") as ready:
        for rank in ranks:
            model = new_client(ready, rank)
            for seed in range(NUM_WARM_UPS):
                round_ms(model, seed)
            times = [
                round_ms(model, seed)
                for seed in progress(range(num_rounds), f"lora_rank {rank}, through the SDK")
            ]
            save_ms, sample_ms = (statistics.median(each) for each in zip(*times, strict=True))
            found = (save_ms, sample_ms, save_ms + sample_ms)
            rows.append([str(rank), *(f"{ms:.1f}" for ms in found)])
    what = (
        f"**{BASE_MODEL}, through the SDK.** Milliseconds from a save to the first token, "
        f"medians of {num_rounds} rounds"
    )
    plot = Plot("through the SDK", HEADER[0], HEADER[1:3], "ms")
    return f"{caption(what)}\n\n{table(HEADER, rows, plot)}\n"


def measure_freezing(base_model: BaseModel, rank: int, num_rounds: int) -> Rounds:
    """Steps of the optimizer, with and without weights that were frozen before each."""
    state = AdapterState.create(base_model, LoraConfig(rank, seed=0))

    def steps(*, freezes: bool) -> None:
        for _ in range(STEPS_PER_ROUND):
            held = state.snapshot_weights() if freezes else None
            optimizer_step(state, OptimStepBody())
            del held

    ways = {"plain": lambda: steps(freezes=False), "frozen": lambda: steps(freezes=True)}
    return interleaved(ways, num_rounds, f"lora_rank {rank}, engine alone", num_warm_ups=2)


def freezing(ranks: Sequence[int], num_rounds: int) -> tuple[str, list[Aim]]:
    """A captioned table, and what it says of the aim."""
    base_model = BaseModel.load(
        BASE_MODEL, tiny_chat.model_dir(), dtype=torch.bfloat16, device=torch.device("cpu")
    )
    rows: list[list[str]] = []
    aims: list[Aim] = []
    for rank in ranks:
        found = measure_freezing(base_model, rank, num_rounds)
        plain_ms, frozen_ms = (
            1000 * found.median_s(way) / STEPS_PER_ROUND for way in found.seconds
        )
        rows.append([str(rank), *(f"{x:.2f}" for x in (plain_ms, frozen_ms, frozen_ms - plain_ms))])
        aim, where = "freezing weights for samples", f"tiny-chat, bfloat16, lora_rank {rank}"
        aims.append(
            Aim(
                aim,
                where,
                MAX_FREEZE_MS,
                frozen_ms - plain_ms,
                is_bound_above=True,
                unit=" ms",
            )
        )
    what = (
        f"**{BASE_MODEL}, bfloat16, engine alone.** Milliseconds of one optim_step; "
        f"{num_rounds} rounds of {STEPS_PER_ROUND} steps"
    )
    return f"{caption(what)}\n\n{table(FREEZE_HEADER, rows)}\n", aims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smaller rank, fewer rounds")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 128])
    options = parser.parse_args()
    num_rounds: int = 5 if options.quick else options.rounds
    ranks: list[int] = options.ranks[:1] if options.quick else options.ranks
    text, aims = freezing(ranks, num_rounds)
    print(text, flush=True)
    print(through_sdk(ranks, num_rounds), flush=True)
    print(aims_table(aims))


if __name__ == "__main__":
    main()
