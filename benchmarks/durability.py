"""What it costs that nothing is lost: the same training with durability and without.

Two deployments run side by side and take turns, so that both see the same machine. One is as
shipped: an append-only file that is synced at every write, and snapshots. The other writes nothing
to disk. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import tinker
from deployed import data, new_client, running, submit_step
from machine import caption, table
from rich.progress import track
from tinker import types

SHAPES = {"4 x 128 tokens": (4, 128), "16 x 256 tokens": (16, 256), "1 x 16 tokens": (1, 16)}


def pipelined(client: tinker.TrainingClient, batch: list[types.Datum], num_steps: int) -> float:
    """Seconds per step when all are sent before the first result is awaited."""
    started_s = time.perf_counter()
    futures = [submit_step(client, batch) for _ in range(num_steps)]
    for future in futures:
        future.result()
    return (time.perf_counter() - started_s) / num_steps


def awaited(client: tinker.TrainingClient, batch: list[types.Datum], num_steps: int) -> float:
    """Seconds per step when each is awaited."""
    started_s = time.perf_counter()
    for _ in range(num_steps):
        submit_step(client, batch).result()
    return (time.perf_counter() - started_s) / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--folder", type=Path, help="where the data folders are made")
    options = parser.parse_args()
    rows: list[list[str]] = []
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as scratch,
        running(Path(scratch) / "durable") as durable,
        running(Path(scratch) / "volatile", is_durable=False) as volatile,
    ):
        clients = [new_client(ready) for ready in (durable, volatile)]
        for name, (num_data, num_tokens) in SHAPES.items():
            batch = data(num_data, num_tokens)
            for how, run in {"pipelined": pipelined, "awaited": awaited}.items():
                seconds: list[list[float]] = [[], []]
                warm_s = max(run(client, batch, 5) for client in clients)
                num_steps = max(5, round(options.seconds / warm_s))
                for _ in track(range(options.rounds), description=f"{name}, {how}"):
                    for client, found in zip(clients, seconds, strict=True):
                        found.append(run(client, batch, num_steps))
                with_s, without_s = (statistics.median(each) for each in seconds)
                per_step = num_data * num_tokens
                cost = statistics.median(a / b for a, b in zip(*seconds, strict=True)) - 1
                rows.append(
                    [
                        f"{name}, {how}",
                        f"{per_step / with_s:,.0f}",
                        f"{per_step / without_s:,.0f}",
                        f"{1000 * with_s:.1f}",
                        f"{1000 * without_s:.1f}",
                        f"{cost:+.1%}",
                    ]
                )
    print(caption("Steps through the SDK with durability and without, cyclora/tiny-chat, rank 8"))
    header = [
        "step",
        "tokens/s durable",
        "tokens/s not",
        "ms durable",
        "ms not",
        "cost (median ratio - 1)",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
