"""Trained tokens per second of a GRPO group: its prompt run once, against once per completion.

Both ways are our engine, interleaved in one process, medians over the rounds; a token of the prompt
counts once per completion either way. Peak memory is that of a process which runs one way only.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import caption, table
from rich.progress import track
from transformers import Qwen3Config, Qwen3ForCausalLM

from cyclora_core.operations import Datum, LoraConfig, PassBody
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.passes import PackedPasses, PassItem

WAYS = {"shared": True, "each its own": False}
SHAPES = {"4 x 256": (4, 256), "8 x 512": (8, 512)}


def base_model_of(shape: str, dtype: torch.dtype, max_tokens: int) -> BaseModel:
    """A Qwen3 of random weights."""
    num_layers, hidden_size = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        head_dim=64,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        Qwen3ForCausalLM(config).save_pretrained(folder)
        return BaseModel.load(shape, folder, dtype=dtype, device=torch.device("cpu"))


def group_of(
    num_completions: int, num_prompt: int, num_completion: int, vocab_size: int
) -> PassBody:
    """Completions of one prompt, with an advantage on their own tokens only."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, vocab_size, num_prompt)
    data: list[Datum] = []
    for _ in range(num_completions):
        ids = np.concatenate((prompt, rng.integers(0, vocab_size, num_completion)))
        advantages = np.full(len(ids) - 1, rng.normal(), np.float32)
        advantages[: num_prompt - 1] = 0.0
        inputs = {
            "target_tokens": ids[1:],
            "logprobs": np.full(len(ids) - 1, -np.log(vocab_size), np.float32),
            "advantages": advantages,
        }
        data.append(Datum(ids[:-1].astype(np.int32), inputs))
    return PassBody("importance_sampling", {}, data)


def one_step(base_model: BaseModel, body: PassBody, *, shares_prefixes: bool) -> Callable[[], None]:
    state = AdapterState.create(base_model, LoraConfig(16))
    item = PassItem("r", state, body, True)

    def step() -> None:
        passes = PackedPasses(
            base_model, [item], max_tokens_per_microbatch=4096, shares_prefixes=shares_prefixes
        )
        for _ in passes:
            pass

    return step


def memory_of(way: str, arguments: list[str]) -> float:
    """Megabytes by which one step raises the peak of a process of its own."""
    command = [sys.executable, __file__, *arguments, "--memory-of", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_megabytes() -> float:
    """Of this process so far; getrusage would count what its parent had before it began."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--shape", choices=SHAPES, default="4 x 256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.prompt, options.completion)
    base_model = base_model_of(options.shape, getattr(torch, options.dtype), sum(sizes))
    body = group_of(options.group, *sizes, base_model.vocab_size)
    if options.memory_of:
        step = one_step(base_model, body, shares_prefixes=WAYS[options.memory_of])
        before = peak_megabytes()
        step()
        print(peak_megabytes() - before)
        return
    steps = {
        name: one_step(base_model, body, shares_prefixes=shares) for name, shares in WAYS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for step in steps.values():
        step()
    for _ in track(range(options.rounds), description="rounds"):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    num_tokens = sum(len(datum.tokens) for datum in body.data)
    speed = {name: num_tokens / statistics.median(each) for name, each in seconds.items()}
    rows = [[name, f"{speed[name]:,.0f}", f"{memory_of(name, sys.argv[1:]):,.0f}"] for name in WAYS]
    what = (
        f"A group of {options.group} completions of {options.completion} tokens after a prompt of "
        f"{options.prompt}, Qwen3 {options.shape} in {options.dtype}, lora_rank 16; "
        f"shared / each its own: {speed['shared'] / speed['each its own']:.2f}"
    )
    print(caption(what))
    print(table(["prompt", "trained tokens/s", "peak memory of a step, MB"], rows))


if __name__ == "__main__":
    main()
