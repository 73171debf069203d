"""Memory: of a resident adapter, of a large batch over a large vocabulary, and over many cycles.

Resident memory (RSS) is what Linux reports of this process; each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from machine import Aim, Plot, aims_table, caption, progress, table
from shapes import Shape

from cyclora_core.operations import Datum, LoraConfig, OptimStepBody, PassBody
from cyclora_workers import tiny_chat
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.engine import Engine, Pass
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.passes import PackedPasses, PassItem
from cyclora_workers.sampling.sampler import Sampler

MIB = 2**20
CPU = torch.device("cpu")
RANKS = (8, 16, 32, 64)
NUM_ADAPTERS = 8
# The vocabulary of Qwen3 over as few layers as possible: what counts here is the head.
LARGE_VOCABULARY = Shape("2 x 64", 2, 64, 128, 2, 1, 32, 151_936)
BATCH_TOKENS = 32_768
QUICK_BATCH_TOKENS = 4096
DATUM_TOKENS = 2048
NUM_TENANTS = 4
CYCLES = 1000
QUICK_CYCLES = 20
WARM_UP_CYCLES = 100
"""Until caches are full and the allocator has what it needs."""
PARTS = ("adapters", "batch", "cycles")


def memory_bytes(field: str) -> int:
    """``VmRSS`` now, or ``VmHWM``, its highest value since ``forget_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def body(lengths: list[int], vocab_size: int, seed: int) -> PassBody:
    rng = np.random.default_rng(seed)
    data: list[Datum] = []
    for length in lengths:
        ids = rng.integers(0, vocab_size, length + 1)
        inputs = {"target_tokens": ids[1:], "weights": np.ones(length, np.float32)}
        data.append(Datum(ids[:-1].astype(np.int32), inputs))
    return PassBody("cross_entropy", {}, data)


def tiny(dtype: torch.dtype) -> BaseModel:
    return BaseModel.load(tiny_chat.MODEL_NAME, tiny_chat.model_dir(), dtype=dtype, device=CPU)


def adapters(dtype_name: str, ranks: Sequence[int]) -> list[Aim]:
    """Bytes of a resident adapter: by its layout, and as the process grows."""
    dtype = getattr(torch, dtype_name)
    base_model = tiny(dtype)
    rows: list[list[str]] = []
    kept: list[AdapterState] = []
    for rank in ranks:
        num_elements = sum(
            rank * (module.in_features + module.out_features)
            for module in base_model.target_modules
        )
        theory = num_elements * (16 + base_model.dtype.itemsize)
        gc.collect()
        before = memory_bytes("VmRSS")
        states = [
            AdapterState.create(base_model, LoraConfig(rank, seed=i)) for i in range(NUM_ADAPTERS)
        ]
        for state in states:
            optimizer_step(state, OptimStepBody())
        measured = (memory_bytes("VmRSS") - before) / NUM_ADAPTERS
        kept += states  # what is freed would be used for the next ones, and not be seen
        rows.append(
            [
                str(rank),
                f"{num_elements:,}",
                f"{theory / MIB:.2f}",
                f"{states[0].num_bytes / MIB:.2f}",
                f"{measured / MIB:.2f}",
            ]
        )
    what = f"**{tiny_chat.MODEL_NAME}, {dtype_name}.** MiB of one resident adapter"
    header = ["lora_rank", "parameters", f"{16 + dtype.itemsize} bytes each", "buffers", "RSS"]
    plot = Plot(f"one adapter, {dtype_name}", header[0], header[2::2], "MiB")
    print(f"{caption(what)}\n\n{table(header, rows, plot)}\n", flush=True)
    return []


def large_batch(batches: Sequence[int]) -> list[Aim]:
    """The peak of a forward and backward as one microbatch, over a vocabulary of 150k.

    Nearly all of the time goes to the elements of logits, tokens times vocabulary of them, which
    are made, normalised and thrown away in chunks; it grows with the tokens, the peak must not.
    """
    shape = LARGE_VOCABULARY
    with tempfile.TemporaryDirectory() as scratch:
        folder = shape.folder(Path(scratch))
        base_model = BaseModel.load(shape.name, folder, dtype=torch.bfloat16, device=CPU)
    state = AdapterState.create(base_model, LoraConfig(8, train_unembed=False))
    rows: list[list[str]] = []
    aims: list[Aim] = []
    for num_tokens in batches:
        work = body([DATUM_TOKENS] * (num_tokens // DATUM_TOKENS), shape.vocab_size, 0)
        logits_bytes = 4 * num_tokens * shape.vocab_size
        gc.collect()
        before = memory_bytes("VmRSS")
        forget_peak()
        began_mono_s = time.perf_counter()
        for _ in PackedPasses(
            base_model, [PassItem("r", state, work, True)], max_tokens_per_microbatch=num_tokens
        ):
            pass
        seconds = time.perf_counter() - began_mono_s
        peak = memory_bytes("VmHWM") - before
        found = [f"{each / MIB:,.0f}" for each in (peak, logits_bytes)]
        rows.append([f"{num_tokens:,}", *found, f"{peak / logits_bytes:.2f}", f"{seconds:.0f}"])
        if num_tokens == BATCH_TOKENS:
            where = f"{num_tokens:,} tokens, vocabulary {shape.vocab_size:,}"
            aim = "peak of a batch over its logits in fp32"
            aims.append(Aim(aim, where, 0.25, peak / logits_bytes, is_bound_above=True))
    what = (
        f"**{shape.name}, bfloat16.** Peak in MiB, above the model, of a forward_backward of "
        f"data of {DATUM_TOKENS:,} tokens as one microbatch, vocabulary {shape.vocab_size:,}"
    )
    header = ["tokens", "peak", "logits of all in fp32", "peak / logits", "seconds"]
    plot = Plot(f"vocabulary {shape.vocab_size:,}", header[0], header[1:3], "MiB")
    print(f"{caption(what)}\n\n{table(header, rows, plot)}\n", flush=True)
    return aims


def many_cycles(num_cycles: int) -> list[Aim]:
    """RSS while tenants train and hand over weights, cycle after cycle."""
    base_model = tiny(torch.float32)
    engine = Engine(
        base_model,
        Sampler(base_model, max_kv_tokens=1024, detokenize=None),
        max_tokens_per_microbatch=4096,
        decode_steps_per_microbatch=0,
        max_cached_samplers=8,
    )
    for tenant in range(NUM_TENANTS):
        engine.create(f"m{tenant}", LoraConfig(8, seed=tenant))
    found: dict[int, int] = {}
    for cycle in progress(range(1, num_cycles + 1), "cycles"):
        rng = np.random.default_rng(cycle)
        passes = [
            Pass(
                f"r{cycle}-{tenant}",
                f"m{tenant}",
                body(rng.integers(4, 33, 1).tolist(), base_model.vocab_size, cycle),
                True,
            )
            for tenant in range(NUM_TENANTS)
        ]
        for _ in engine.run_passes(passes):
            pass
        for tenant in range(NUM_TENANTS):
            engine.optim_step(f"m{tenant}", OptimStepBody())
            engine.freeze_for_sampling(f"m{tenant}", Path(f"/m{tenant}/{cycle}"))
        if cycle % (num_cycles // 5) == 0:
            gc.collect()
            found[cycle] = memory_bytes("VmRSS")
    what = (
        f"**{tiny_chat.MODEL_NAME}, float32.** RSS in MiB over cycles of {NUM_TENANTS} tenants, "
        f"each with a forward_backward, an optim_step and a hand-over"
    )
    rows = [[f"{cycle:,}", f"{rss / MIB:,.1f}"] for cycle, rss in found.items()]
    plot = Plot("resident memory", "cycle", ["RSS"], "MiB")
    print(f"{caption(what)}\n\n{table(['cycle', 'RSS'], rows, plot)}\n", flush=True)
    first, *_, last = found
    if first < WARM_UP_CYCLES:
        return []
    where = f"cycle {last:,} over cycle {first:,}"
    aim = "resident memory over many cycles"
    return [Aim(aim, where, 1.02, found[last] / found[first], is_bound_above=True)]


def in_own_process(part: Callable[..., list[Aim]], *arguments: object) -> list[Aim]:
    """What a part says of the aims.

    Raises:
        EOFError: its process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, part, arguments))
    process.start()
    # Else a process that died would be waited for without end.
    theirs.close()
    aims: list[Aim] = ours.recv()
    process.join()
    return aims


def _send(pipe: Connection, part: Callable[..., list[Aim]], arguments: Sequence[object]) -> None:
    pipe.send(part(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="bfloat16, a smaller batch, fewer cycles"
    )
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    aims: list[Aim] = []
    if "adapters" in options.parts:
        for dtype_name in ["bfloat16"] if options.quick else ["float32", "bfloat16"]:
            aims += in_own_process(adapters, dtype_name, RANKS)
    if "batch" in options.parts:
        batches = [QUICK_BATCH_TOKENS] if options.quick else [QUICK_BATCH_TOKENS, BATCH_TOKENS]
        aims += in_own_process(large_batch, batches)
    if "cycles" in options.parts:
        aims += in_own_process(many_cycles, QUICK_CYCLES if options.quick else options.cycles)
    if aims:
        print(aims_table(aims))


if __name__ == "__main__":
    main()
