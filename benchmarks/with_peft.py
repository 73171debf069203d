"""The baseline without an engine: transformers + peft, one tenant after another."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from work import Work

from cyclora_core.operations import PassBody

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_step(
    folder: Path, works: Sequence[Work], ranks: Sequence[int], dtype: torch.dtype
) -> Callable[[], None]:
    """One step of every tenant: set_adapter, its padded data, backward, AdamW.

    Each call takes the next of the works, and the first behind the last. peft keeps the adapters in
    fp32 beside a bf16 base model, as we keep their masters.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for i, rank in enumerate(ranks):
        config = LoraConfig(r=rank, lora_alpha=32, target_modules=_TARGETS)
        if i == 0:
            model = get_peft_model(model, config, adapter_name="t0")
        else:
            model.add_adapter(f"t{i}", config)
    optimizers: list[torch.optim.Optimizer] = []
    for i in range(len(ranks)):
        model.set_adapter(f"t{i}")
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers.append(torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-12))
    turns = itertools.cycle([[_padded(body) for body in work] for work in works])

    def step() -> None:
        for i, (tokens, targets) in enumerate(next(turns)):
            model.set_adapter(f"t{i}")
            logits = model(input_ids=tokens, attention_mask=(targets != -100).long()).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
            )
            loss.backward()
            optimizers[i].step()
            optimizers[i].zero_grad()

    return step


def best_dtype(folder: Path, work: Work, ranks: Sequence[int]) -> torch.dtype:
    """The dtype in which this baseline is faster here: the best of three steps each."""
    found: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        step = peft_step(folder, [work], ranks, dtype)
        step()
        seconds: list[float] = []
        for _ in range(3):
            started_mono_s = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started_mono_s)
        found[dtype] = min(seconds)
    return min(found, key=found.__getitem__)


def _padded(body: PassBody) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets, -100 where there is none, of all data as one batch."""
    longest = max(len(datum.tokens) for datum in body.data)
    tokens = torch.zeros(len(body.data), longest, dtype=torch.int64)
    targets = torch.full((len(body.data), longest), -100)
    for row, datum in enumerate(body.data):
        length = len(datum.tokens)
        tokens[row, :length] = torch.from_numpy(datum.tokens.astype(np.int64))
        targets[row, :length] = torch.from_numpy(datum.loss_fn_inputs["target_tokens"])
    return tokens, targets
