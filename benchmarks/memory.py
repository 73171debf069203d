"""Memory: of a resident adapter, of a large batch over a large vocabulary, and over many cycles.

Resident memory (RSS) is what Linux reports of this process; each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import caption, table
from rich.progress import track
from transformers import Qwen3Config, Qwen3ForCausalLM

from cyclora_core.operations import Datum, LoraConfig, OptimStepBody, PassBody
from cyclora_workers import tiny_chat
from cyclora_workers.activation_memory import measure_activation_memory
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
VOCAB_SIZE = 151_936
BATCH_TOKENS = 32_768
DATUM_TOKENS = 2048
NUM_TENANTS = 4
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


def adapters(dtype: torch.dtype) -> None:
    """Bytes of a resident adapter: by its layout, and as the process grows."""
    base_model = tiny(dtype)
    rows: list[list[str]] = []
    kept: list[AdapterState] = []
    for rank in RANKS:
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
    print(caption(f"MiB of one resident adapter, {tiny_chat.MODEL_NAME} in {dtype}"))
    print(table(["lora_rank", "parameters", "16 + itemsize bytes each", "buffers", "RSS"], rows))


def large_batch() -> None:
    """The peak of one forward and backward of 32k tokens with a vocabulary of 150k."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
    )
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        Qwen3ForCausalLM(config).save_pretrained(folder)
        base_model = BaseModel.load("large-vocabulary", folder, dtype=torch.bfloat16, device=CPU)
    memory = measure_activation_memory(base_model)
    state = AdapterState.create(base_model, LoraConfig(8, train_unembed=False))
    work = body([DATUM_TOKENS] * (BATCH_TOKENS // DATUM_TOKENS), VOCAB_SIZE, 0)
    # The same bits in each: how a batch is cut, and what is computed twice, changes no number.
    for name, max_tokens, max_kept_tokens in (
        ("microbatches of 4,096", 4096, None),
        ("one microbatch", BATCH_TOKENS, None),
        ("one microbatch, layers computed again", BATCH_TOKENS, 0),
    ):
        gc.collect()
        before = memory_bytes("VmRSS")
        forget_peak()
        passes = PackedPasses(
            base_model,
            [PassItem("r", state, work, True)],
            max_tokens_per_microbatch=max_tokens,
            max_kept_tokens=max_kept_tokens,
        )
        for _ in track(passes, total=-(-BATCH_TOKENS // max_tokens), description=name):
            pass
        rows.append([name, f"{(memory_bytes('VmHWM') - before) / MIB:,.0f}"])
    rows.append(["(logits of all tokens in fp32)", f"{4 * BATCH_TOKENS * VOCAB_SIZE / MIB:,.0f}"])
    kept = f"{memory.bytes_per_token / 1024:.1f} KiB a token, estimated"
    print(caption(f"Peak MiB of {BATCH_TOKENS:,} tokens, vocabulary {VOCAB_SIZE:,}; {kept}"))
    print(table(["run as", "peak above the model"], rows))


def many_cycles(num_cycles: int = 1000) -> None:
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
    rows: list[list[str]] = []
    for cycle in track(range(1, num_cycles + 1), description="cycles"):
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
        if cycle in (50, 100) or cycle % (num_cycles // 5) == 0:
            gc.collect()
            rows.append([str(cycle), f"{memory_bytes('VmRSS') / MIB:,.1f}"])
    what = f"RSS in MiB over cycles of {NUM_TENANTS} tenants, {tiny_chat.MODEL_NAME}"
    print(caption(what))
    print(table(["cycle", "RSS"], rows))


def in_own_process(part: Callable[..., None], *args: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=part, args=args)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{part.__name__} ended with {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if "adapters" in options.parts:
        for dtype in (torch.float32, torch.bfloat16):
            in_own_process(adapters, dtype)
    if "batch" in options.parts:
        in_own_process(large_batch)
    if "cycles" in options.parts:
        in_own_process(many_cycles, options.cycles)


if __name__ == "__main__":
    main()
