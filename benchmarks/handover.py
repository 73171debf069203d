"""From save_weights_and_get_sampling_client to the first sampled token, through the SDK.

Each round trains one step, saves and samples one token; times are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import tinker
from deployed import BASE_MODEL, data, new_client, running, submit_step
from machine import caption, table
from rich.progress import track
from tinker import types

NUM_WARM_UPS = 3


def round_ms(model: tinker.TrainingClient, seed: int) -> tuple[float, float]:
    """Milliseconds of one save, and of the first sample behind it."""
    submit_step(model, data(2, 32, seed)).result()
    params = types.SamplingParams(max_tokens=1, seed=1)
    began_s = time.perf_counter()
    sampler = model.save_weights_and_get_sampling_client().result()
    saved_s = time.perf_counter()
    sampler.sample(types.ModelInput.from_ints([5, 6, 7]), 1, params).result()
    return 1000 * (saved_s - began_s), 1000 * (time.perf_counter() - saved_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 128])
    options = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch) / "data") as ready:
        for rank in options.ranks:
            model = new_client(ready, rank)
            for seed in range(NUM_WARM_UPS):
                round_ms(model, seed)
            rounds = track(range(options.rounds), description=f"rank {rank}")
            times = [round_ms(model, seed) for seed in rounds]
            save_ms, sample_ms = (statistics.median(each) for each in zip(*times, strict=True))
            rows.append(
                [str(rank), f"{save_ms:.1f}", f"{sample_ms:.1f}", f"{save_ms + sample_ms:.1f}"]
            )
    print(caption(f"Milliseconds from save to first token, {BASE_MODEL}, medians"))
    print(table(["lora_rank", "save", "first token", "both"], rows))


if __name__ == "__main__":
    main()
