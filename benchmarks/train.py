"""Trained tokens per second: all tenants packed, against one tenant after another.

Three ways to run one step (forward_backward and optimizer step) of every tenant, interleaved in
one process, medians over the rounds:

- packed: our engine, the data of all tenants in shared passes;
- one by one: our engine, one tenant per pass;
- peft: transformers + peft, set_adapter, each tenant's data padded to a batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import caption, table
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from rich.progress import track
from transformers import AutoModelForCausalLM

from cyclora_core.operations import Datum, LoraConfig, OptimStepBody, PassBody
from cyclora_workers import tiny_chat
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.passes import PackedPasses, PassItem

RANKS = (8, 16, 32)
DATA_PER_TENANT = 4


def bodies(num_tenants: int, vocab_size: int) -> list[PassBody]:
    """Ragged data of 32 to 256 tokens, other for each tenant."""
    rng = np.random.default_rng(num_tenants)
    made: list[PassBody] = []
    for _ in range(num_tenants):
        data: list[Datum] = []
        for length in rng.integers(32, 257, DATA_PER_TENANT):
            ids = rng.integers(0, vocab_size, length + 1)
            inputs = {"target_tokens": ids[1:], "weights": np.ones(length, np.float32)}
            data.append(Datum(ids[:-1].astype(np.int32), inputs))
        made.append(PassBody("cross_entropy", {}, data))
    return made


def ours(base_model: BaseModel, work: list[PassBody], *, is_packed: bool) -> Callable[[], None]:
    states = [
        AdapterState.create(base_model, LoraConfig(RANKS[i % 3], seed=i)) for i in range(len(work))
    ]
    items = [
        PassItem(f"r{i}", state, body, True)
        for i, (state, body) in enumerate(zip(states, work, strict=True))
    ]

    def step() -> None:
        groups = [items] if is_packed else [[item] for item in items]
        for group in groups:
            for _ in PackedPasses(base_model, group, max_tokens_per_microbatch=4096):
                pass
            for item in group:
                optimizer_step(item.adapter, OptimStepBody())

    return step


def with_peft(folder: Path, work: list[PassBody], dtype: torch.dtype) -> Callable[[], None]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for i in range(len(work)):
        config = PeftConfig(r=RANKS[i % 3], lora_alpha=32, target_modules=targets)
        if i == 0:
            model = get_peft_model(model, config, adapter_name="t0")
        else:
            model.add_adapter(f"t{i}", config)
    optimizers: list[torch.optim.Optimizer] = []
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i, body in enumerate(work):
        model.set_adapter(f"t{i}")
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers.append(torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-12))
        longest = max(len(datum.tokens) for datum in body.data)
        tokens = torch.zeros(len(body.data), longest, dtype=torch.int64)
        targets_ = torch.full((len(body.data), longest), -100)
        for row, datum in enumerate(body.data):
            length = len(datum.tokens)
            tokens[row, :length] = torch.from_numpy(datum.tokens.astype(np.int64))
            targets_[row, :length] = torch.from_numpy(datum.loss_fn_inputs["target_tokens"])
        batches.append((tokens, targets_))

    def step() -> None:
        for i, (tokens, targets_) in enumerate(batches):
            model.set_adapter(f"t{i}")
            logits = model(input_ids=tokens, attention_mask=(targets_ != -100).long()).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets_.flatten(), reduction="sum"
            )
            loss.backward()
            optimizers[i].step()
            optimizers[i].zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    folder = tiny_chat.model_dir()
    base_model = BaseModel.load(
        tiny_chat.MODEL_NAME, folder, dtype=dtype, device=torch.device("cpu")
    )
    rows: list[list[str]] = []
    for num_tenants in options.tenants:
        work = bodies(num_tenants, base_model.vocab_size)
        num_tokens = sum(len(datum.tokens) for body in work for datum in body.data)
        ways = {
            "packed": ours(base_model, work, is_packed=True),
            "one by one": ours(base_model, work, is_packed=False),
            "peft": with_peft(folder, work, dtype),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        for _ in track(range(options.rounds), description=f"{num_tenants} tenants"):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - started)
        speed = {name: num_tokens / statistics.median(each) for name, each in seconds.items()}
        rows.append(
            [
                str(num_tenants),
                *(f"{speed[name]:,.0f}" for name in ways),
                f"{speed['packed'] / speed['one by one']:.2f}",
                f"{speed['packed'] / speed['peft']:.2f}",
            ]
        )
    what = (
        f"Trained tokens/s, one step of every tenant, {tiny_chat.MODEL_NAME} in {options.dtype}, "
        f"lora_rank 8/16/32, {DATA_PER_TENANT} data of 32 to 256 tokens each"
    )
    print(caption(what))
    header = ["tenants", "packed", "one by one", "peft", "packed / one by one", "packed / peft"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
