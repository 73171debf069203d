"""A program for ``test_load_memory.py``: generates a checkpoint, or loads it and prints memory."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cyclora_workers.base_model import BaseModel

CPU = torch.device("cpu")


def generate(folder: Path, dtype: torch.dtype) -> None:
    """256 million parameters in shards of 60 MB."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    config.dtype = dtype
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model.to(dtype).to_empty(device=CPU)
    for parameter in model.parameters():
        parameter.detach().fill_(0.01)
    model.save_pretrained(folder, max_shard_size="60MB")


def status_bytes(field: str) -> int:
    """A line of the process's status, which the kernel gives in kB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def load(folder: Path, base_weights: Any) -> None:
    """Print the model's bytes, and by how much loading raised the peak."""
    before = status_bytes("VmRSS")
    base_model = BaseModel.load(
        "tests/large", folder, dtype=torch.bfloat16, device=CPU, base_weights=base_weights
    )
    peak = status_bytes("VmHWM") - before
    print(json.dumps({"model": 2 * base_model.num_parameters, "peak": peak}))


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load(Path(sys.argv[2]), sys.argv[3])
    else:
        generate(Path(sys.argv[2]), getattr(torch, sys.argv[1]))
