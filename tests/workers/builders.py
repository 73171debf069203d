"""Tiny models, adapters and data for the tests of the worker's engine.

Legend: N tokens of a datum, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cyclora_core.operations import Datum, LoraConfig, PassBody
from cyclora_workers.adapter import AdapterState
from cyclora_workers.attention import PackedAttention
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.pass_blocks import PassItem
from cyclora_workers.passes import PackedPasses
from cyclora_workers.quantized_weight import BaseWeights

VOCAB_SIZE = 97
CPU = torch.device("cpu")

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "eos_token_id": 3,
}


def qwen3(**changes: Any) -> PreTrainedModel:
    """Tied unembedding, norms on query and key."""
    torch.manual_seed(1)
    own: dict[str, Any] = {"head_dim": 16, "tie_word_embeddings": True}
    return Qwen3ForCausalLM(Qwen3Config(**(_SHAPE | own | changes))).eval()


def llama(**changes: Any) -> PreTrainedModel:
    """An unembedding of its own."""
    torch.manual_seed(2)
    own: dict[str, Any] = {"tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**(_SHAPE | own | changes))).eval()


def qwen2(**changes: Any) -> PreTrainedModel:
    """Biases on query, key and value; a sliding window in the second layer."""
    torch.manual_seed(3)
    own: dict[str, Any] = {
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**(_SHAPE | own | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    return model


ARCHITECTURES = {"qwen3": qwen3, "llama": llama, "qwen2": qwen2}


def load(
    model: PreTrainedModel,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    base_weights: BaseWeights = "as_loaded",
) -> BaseModel:
    """Save a plain model and load it as a base model; the plain one stays as it was."""
    model.save_pretrained(folder)
    return BaseModel.load("tests/tiny", folder, dtype=dtype, device=CPU, base_weights=base_weights)


def random_adapter(base_model: BaseModel, rank: int, seed: int, **flags: bool) -> AdapterState:
    """An adapter that changes the model: B is not zero, as it is in a fresh one."""
    state = AdapterState.create(base_model, LoraConfig(rank, seed, **flags))
    generator = torch.Generator().manual_seed(seed + 1000)
    for _, lora_B_FR in state.layout.views(state.master_P).values():
        lora_B_FR.copy_(torch.randn(lora_B_FR.shape, generator=generator) * 0.05)
    state.refresh_weights()
    return state


def datum(num_tokens: int, seed: int, **inputs: Any) -> Datum:
    """Random tokens and targets; ``inputs`` beside them default to loss weights of 1."""
    rng = np.random.default_rng(seed)
    given = inputs or {"weights": np.ones(num_tokens)}
    arrays: dict[str, Any] = {key: np.asarray(value, np.float32) for key, value in given.items()}
    arrays["target_tokens"] = rng.integers(0, VOCAB_SIZE, num_tokens)
    return Datum(rng.integers(0, VOCAB_SIZE, num_tokens).astype(np.int32), arrays)


def cross_entropy(lengths: Sequence[int], seed: int = 0) -> PassBody:
    """A body of random data with random loss weights, some of them zero or negative."""
    data: list[Datum] = []
    for index, length in enumerate(lengths):
        rng = np.random.default_rng([seed, index])
        weights = rng.normal(size=length) * (rng.random(length) < 0.8)
        data.append(datum(length, seed * 1000 + index, weights=weights))
    return PassBody("cross_entropy", {}, data)


def policy_body(
    loss_fn: str, lengths: Sequence[int], seed: int = 0, config: Mapping[str, float] | None = None
) -> PassBody:
    """A body with sampler logprobs and advantages."""
    data: list[Datum] = []
    for index, length in enumerate(lengths):
        rng = np.random.default_rng([seed, index])
        inputs: dict[str, Any] = {
            "logprobs": -rng.random(length) * 6,
            "advantages": rng.normal(size=length),
        }
        if loss_fn == "gspo":
            # The last token at least, as the tokens of a prompt are never sampled.
            inputs["sequence_ratio_mask"] = (rng.random(length) < 0.7) | (
                np.arange(length) == length - 1
            )
        data.append(datum(length, seed * 1000 + index, **inputs))
    return PassBody(loss_fn, config or {}, data)


def top_k(lengths: Sequence[int], widths: Sequence[int], seed: int = 0) -> PassBody:
    """A cross_entropy body with targets [N, K], K in turn from ``widths``."""
    data: list[Datum] = []
    for index, length in enumerate(lengths):
        rng = np.random.default_rng([seed, index])
        shape = (length, widths[index % len(widths)])
        weights = rng.normal(size=shape) * (rng.random(shape) < 0.6)
        inputs: dict[str, Any] = {
            "target_tokens": rng.integers(0, VOCAB_SIZE, shape),
            "weights": weights.astype(np.float32),
        }
        data.append(Datum(rng.integers(0, VOCAB_SIZE, length).astype(np.int32), inputs))
    return PassBody("cross_entropy", {}, data)


def with_prompts(body: PassBody, group: int, prompt: int, seed: int = 0) -> PassBody:
    """The same data, but each ``group`` of neighbours begins with the same random tokens."""
    data: list[Datum] = []
    for index, each in enumerate(body.data):
        rng = np.random.default_rng([seed, index // group])
        count = min(prompt, len(each.tokens) - 1)
        begin = rng.integers(0, VOCAB_SIZE, prompt).astype(np.int32)[:count]
        data.append(replace(each, tokens=np.concatenate((begin, each.tokens[count:]))))
    return replace(body, data=data)


def item(
    state: AdapterState, body: PassBody, request_id: str = "r", *, needs_gradient: bool = True
) -> PassItem:
    return PassItem(request_id, state, body, needs_gradient)


def run(
    base_model: BaseModel, items: Sequence[PassItem], max_tokens: int = 4096, **options: Any
) -> PackedPasses:
    """Run all microbatches."""
    passes = PackedPasses(base_model, items, max_tokens_per_microbatch=max_tokens, **options)
    for _ in passes:
        pass
    return passes


def packed(lengths: Sequence[int], segments: Sequence[Segment] | None = None) -> PassContext:
    """The context of sequences laid end to end; the bare base model unless segments are given."""
    cu_seqlens = [0, *np.cumsum(lengths).tolist()]
    covering = segments or [Segment(0, cu_seqlens[-1], None)]
    return PassContext(covering, PackedAttention(cu_seqlens))


def positions(lengths: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])
