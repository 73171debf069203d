"""Trained tokens per second of a GRPO group: its prompt run once, against once per completion.

Both ways are our engine and take turns in one process; a token of the prompt counts once per
completion either way. Peak memory is that of a process which runs one step, one way.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from machine import Aim, Plot, aims_table, caption, table
from rounds import Rounds, interleaved
from shapes import SHAPES, TINY, Shape

from cyclora_core.operations import Datum, LoraConfig, PassBody
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.passes import PackedPasses, PassItem

PROMPT_TOKENS = 512
COMPLETION_TOKENS = 64
AIM_COMPLETIONS = 16
"""Of the group for which the aim was given."""
LORA_RANK = 16
MAX_TOKENS_PER_MICROBATCH = 4096
MIB = 2**20
WAYS = {"shared": True, "each its own": False}
HEADER = ["completions", "tokens", *WAYS, "shared / each its own", "spread"]
MEMORY_HEADER = ["completions", *WAYS]


def group_of(num_completions: int, vocab_size: int) -> PassBody:
    """Completions of one prompt, with an advantage on their own tokens only."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, vocab_size, PROMPT_TOKENS)
    data: list[Datum] = []
    for _ in range(num_completions):
        ids = np.concatenate((prompt, rng.integers(0, vocab_size, COMPLETION_TOKENS)))
        advantages = np.full(len(ids) - 1, rng.normal(), np.float32)
        advantages[: PROMPT_TOKENS - 1] = 0.0
        inputs = {
            "target_tokens": ids[1:],
            "logprobs": np.full(len(ids) - 1, -np.log(vocab_size), np.float32),
            "advantages": advantages,
        }
        data.append(Datum(ids[:-1].astype(np.int32), inputs))
    return PassBody("importance_sampling", {}, data)


def group_step(
    base_model: BaseModel, body: PassBody, *, shares_prefixes: bool
) -> Callable[[], None]:
    """A forward_backward of the group; gradients go on summing from call to call."""
    state = AdapterState.create(base_model, LoraConfig(LORA_RANK))
    item = PassItem("r", state, body, True)

    def step() -> None:
        passes = PackedPasses(
            base_model,
            [item],
            max_tokens_per_microbatch=MAX_TOKENS_PER_MICROBATCH,
            shares_prefixes=shares_prefixes,
        )
        for _ in passes:
            pass

    return step


def load(shape: Shape, scratch: Path, dtype_name: str) -> BaseModel:
    dtype, device = getattr(torch, dtype_name), torch.device("cpu")
    return BaseModel.load(shape.name, shape.folder(scratch), dtype=dtype, device=device)


def measure(base_model: BaseModel, num_completions: int, num_rounds: int) -> Rounds:
    body = group_of(num_completions, base_model.vocab_size)
    ways = {
        name: group_step(base_model, body, shares_prefixes=shares) for name, shares in WAYS.items()
    }
    description = f"{base_model.name}, {base_model.dtype}, {num_completions} completions"
    return interleaved(ways, num_rounds, description)


def step_memory(shape: Shape, scratch: Path, dtype_name: str, num_completions: int) -> list[int]:
    """Bytes by which one step raises the peak of a process of its own, each way."""
    context = multiprocessing.get_context("spawn")
    found: list[int] = []
    for shares_prefixes in WAYS.values():
        ours, theirs = context.Pipe()
        arguments = (theirs, shape, scratch, dtype_name, num_completions, shares_prefixes)
        process = context.Process(target=_send_step_memory, args=arguments)
        process.start()
        # Else a process that died would be waited for without end.
        theirs.close()
        found.append(ours.recv())
        process.join()
    return found


def _send_step_memory(
    pipe: Connection,
    shape: Shape,
    scratch: Path,
    dtype_name: str,
    num_completions: int,
    shares_prefixes: bool,
) -> None:
    base_model = load(shape, scratch, dtype_name)
    body = group_of(num_completions, base_model.vocab_size)
    step = group_step(base_model, body, shares_prefixes=shares_prefixes)
    before = _peak_bytes()
    step()
    pipe.send(_peak_bytes() - before)


def _peak_bytes() -> int:
    """Of this process so far; getrusage would count what its parent had before it began."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("/proc/self/status has no VmHWM")
    return 1024 * int(found[1])


def measure_shape(
    shape: Shape, scratch: Path, dtype_name: str, groups: list[int], num_rounds: int
) -> list[Aim]:
    """Print the captioned table of a shape; returns what it says of the aims."""
    base_model = load(shape, scratch, dtype_name)
    where = f"{shape.name}, {dtype_name}"
    rows: list[list[str]] = []
    aims: list[Aim] = []
    for group in groups:
        found = measure(base_model, group, num_rounds)
        tokens = group * (PROMPT_TOKENS + COMPLETION_TOKENS - 1)
        speeds = [f"{found.per_s(way, tokens):,.0f}" for way in WAYS]
        ratio = found.speedup_range("shared", "each its own")
        rows.append([str(group), f"{tokens:,}", *speeds, ratio, f"{found.spread('shared'):.0%}"])
        if group == AIM_COMPLETIONS:
            aim = f"a group of {group} over the same without sharing"
            aims.append(Aim(aim, where, 3, found.speedup("shared", "each its own")))
    what = (
        f"**{where}.** Trained tokens/s of a forward_backward of completions of "
        f"{COMPLETION_TOKENS} tokens after a prompt of {PROMPT_TOKENS}, lora_rank {LORA_RANK}, "
        f"importance_sampling; {num_rounds} rounds"
    )
    plot = Plot(where, HEADER[0], list(WAYS))
    print(f"{caption(what)}\n\n{table(HEADER, rows, plot)}\n", flush=True)
    return aims


def memory_report(shape: Shape, scratch: Path, dtype_name: str, groups: list[int]) -> str:
    rows: list[list[str]] = []
    for group in groups:
        found = step_memory(shape, scratch, dtype_name, group)
        rows.append([str(group), *(f"{each / MIB:,.0f}" for each in found)])
    where = f"{shape.name}, {dtype_name}"
    what = f"**{where}.** MiB by which one step raises the peak memory of its process"
    return f"{caption(what)}\n\n{table(MEMORY_HEADER, rows)}\n"


def main() -> None:
    names = [shape.name for shape in SHAPES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest shape, in bfloat16, without its memory"
    )
    parser.add_argument("--shapes", nargs="+", choices=names, default=names[:2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--groups", type=int, nargs="+", default=[4, AIM_COMPLETIONS])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shapes = [TINY] if options.quick else [s for s in SHAPES if s.name in options.shapes]
    dtype_names: list[str] = ["bfloat16"] if options.quick else options.dtypes
    groups: list[int] = [AIM_COMPLETIONS] if options.quick else options.groups
    num_rounds: int = 2 if options.quick else options.rounds
    aims: list[Aim] = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes:
            for dtype_name in dtype_names:
                aims += measure_shape(shape, Path(scratch), dtype_name, groups, num_rounds)
        if not options.quick:
            print(memory_report(shapes[0], Path(scratch), dtype_names[0], groups), flush=True)
    print(aims_table(aims))


if __name__ == "__main__":
    main()
