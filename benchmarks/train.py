"""Trained tokens per second of the engine, beside peft, itself without adapters, and the bound.

docs/performance.md says what each of them computes. All of them take turns in one process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from bounds import MatrixProducts
from machine import Aim, Plot, aims_table, caption, table
from rounds import Rounds, interleaved
from shapes import SHAPES, TINY, Shape
from with_peft import best_dtype, peft_step
from work import (
    MAX_TOKENS,
    MAX_TOKENS_PER_MICROBATCH,
    MIN_TOKENS,
    bare_pass,
    dealt,
    engine_step,
    num_tokens,
    random_data,
    ranks,
)

from cyclora_workers.base_model import BaseModel
from cyclora_workers.freed_memory import keep_freed_memory

CASES = ((1, 4), (4, 4), (16, 4), (64, 1))
"""Tenants, and data of each."""
QUICK_CASES = ((16, 2),)
HEADER = [
    "tenants x data",
    "tokens",
    "ours",
    "peft",
    "no adapter",
    "bound",
    "ours / peft",
    "ours / no adapter",
    "ours / bound",
    "spread",
]


@dataclass(frozen=True, slots=True)
class Case:
    """Tenants that each train on as many data."""

    num_tenants: int
    num_data: int
    num_tokens: int
    bound_flops: int
    rounds: Rounds

    def row(self) -> list[str]:
        ways = ("ours", "peft", "no adapter", "bound")
        speeds = [f"{self.rounds.per_s(way, self.num_tokens):,.0f}" for way in ways]
        ratios = [self.rounds.speedup_range("ours", "peft")]
        ratios += [f"{self.rounds.speedup('ours', way):.2f}" for way in ways[2:]]
        name = f"{self.num_tenants} x {self.num_data}"
        return [name, f"{self.num_tokens:,}", *speeds, *ratios, f"{self.rounds.spread('ours'):.0%}"]


def measure(
    base_model: BaseModel,
    folder: Path,
    peft_dtype: torch.dtype,
    case: tuple[int, int],
    num_rounds: int,
) -> Case:
    num_tenants, num_data = case
    count, vocab_size = num_tenants * num_data, base_model.vocab_size
    rounds = [random_data(count, vocab_size)]
    total = num_tokens(dealt(rounds[0], num_tenants))
    rounds += [random_data(count, vocab_size, i + 1, total=total) for i in range(num_rounds)]
    works = [dealt(data, num_tenants) for data in rounds]
    bound = MatrixProducts(base_model, total, MAX_TOKENS_PER_MICROBATCH)
    ways = {
        "ours": engine_step(base_model, works),
        "peft": peft_step(folder, works, ranks(num_tenants), peft_dtype),
        "no adapter": bare_pass(base_model, works),
        "bound": bound,
    }
    if num_tenants == 64:
        ways["one tenant"] = engine_step(base_model, [dealt(data, 1) for data in rounds])
    description = f"{base_model.name}, {base_model.dtype}, {num_tenants} tenants"
    return Case(*case, total, bound.flops, interleaved(ways, num_rounds, description))


def report(
    shape: Shape, dtype_name: str, peft_dtype: torch.dtype, cases: list[Case]
) -> tuple[str, list[Aim]]:
    """A captioned table, and what it says of the aims."""
    gflops = max(c.bound_flops / c.rounds.median_s("bound") for c in cases) / 1e9
    what = (
        f"**{shape.name}, {dtype_name}.** Trained tokens/s; lora_rank 8, 16, 32 in turn, data of "
        f"{MIN_TOKENS} to {MAX_TOKENS} tokens; vocabulary {shape.vocab_size}; peft in "
        f"{str(peft_dtype).removeprefix('torch.')}; the bound at up to {gflops:,.0f} GFLOP/s; "
        f"{len(cases[0].rounds.seconds['ours'])} rounds"
    )
    where = f"{shape.name}, {dtype_name}"
    aims: list[Aim] = []
    for case in cases:
        if case.num_tenants == 16:
            found = {way: case.rounds.speedup("ours", way) for way in ("peft", "no adapter")}
            aims.append(Aim("16 tenants over transformers + peft", where, 2.5, found["peft"]))
            aims.append(Aim("16 tenants over no adapter", where, 0.8, found["no adapter"]))
            if dtype_name == "bfloat16" and shape is not TINY:
                share = case.rounds.speedup("ours", "bound")
                aims.append(Aim("16 tenants over the matrix-rate bound", where, 0.5, share))
        if case.num_tenants == 64:
            same = case.rounds.speedup("ours", "one tenant")
            aims.append(Aim("64 tenants over 1 with the same tokens", where, 0.9, same))
    plot = Plot(where, HEADER[0], HEADER[2:6])
    return f"{caption(what)}\n\n{table(HEADER, [c.row() for c in cases], plot)}\n", aims


def main() -> None:
    names = [shape.name for shape in SHAPES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest shape, in bfloat16")
    parser.add_argument("--shapes", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        help="default: bfloat16, in which a worker computes from a hidden size of 512 on, and "
        "float32 for the smallest shape too",
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # oneDNN keeps 1,024 compiled products of a process. Each way would have them to itself.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    keep_freed_memory()  # as a worker does; all ways share it
    cases, num_rounds = (QUICK_CASES, 2) if options.quick else (CASES, options.rounds)
    shapes = [TINY] if options.quick else [s for s in SHAPES if s.name in options.shapes]
    dtypes: list[str] | None = ["bfloat16"] if options.quick else options.dtypes
    aims: list[Aim] = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes:
            folder = shape.folder(Path(scratch))
            probe = dealt(random_data(16, shape.vocab_size), 4)
            peft_dtype = best_dtype(folder, probe, ranks(4))
            for dtype_name in dtypes or ["float32", "bfloat16"][shape is not TINY :]:
                dtype = getattr(torch, dtype_name)
                device = torch.device("cpu")
                base_model = BaseModel.load(shape.name, folder, dtype=dtype, device=device)
                found = [measure(base_model, folder, peft_dtype, c, num_rounds) for c in cases]
                text, met = report(shape, dtype_name, peft_dtype, found)
                print(text, flush=True)
                aims += met
    print(aims_table(aims))


if __name__ == "__main__":
    main()
