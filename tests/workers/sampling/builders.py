"""Tiny models, requests and slow references for the tests of the sampler.

The references know nothing of the sampler: a plain transformers model that computes the whole
sequence again for every token.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cyclora_core.operations import LoraConfig
from cyclora_core.payload import Array
from cyclora_core.samples import SampleBody, SampledSequence, SampleResult, SamplingParams
from cyclora_workers.adapter import AdapterState, AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.sampling.sampler import Sampler

VOCAB_SIZE = 101
EOS_TOKEN_ID = 3
CONTEXT_LENGTH = 400

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "initializer_range": 0.15,
    "eos_token_id": EOS_TOKEN_ID,
}


@contextmanager
def threads(num_threads: int) -> Generator[None]:
    """Threads of torch; two that wait for each other on a busy machine cost a hundredfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def qwen3() -> PreTrainedModel:
    """Tied unembedding, norms on query and key, two query heads per key-value head."""
    torch.manual_seed(11)
    return Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=True))


def llama() -> PreTrainedModel:
    """An unembedding of its own, one query head per key-value head."""
    torch.manual_seed(12)
    shape: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 4, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**shape))


def qwen2() -> PreTrainedModel:
    """A sliding window of 20 in the second layer, three query heads per key-value head."""
    torch.manual_seed(13)
    window: dict[str, Any] = {
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
    }
    heads: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48}
    return Qwen2ForCausalLM(Qwen2Config(**{**_SHAPE, **window, **heads}))


ARCHITECTURES = {"qwen3": qwen3, "llama": llama, "qwen2": qwen2}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """The same weights twice: as our base model, and as transformers has them."""

    base_model: BaseModel
    plain: PreTrainedModel


def load(name: str, folder: Path) -> TinyModel:
    ARCHITECTURES[name]().save_pretrained(folder)
    base_model = BaseModel.load(
        f"tests/{name}", folder, dtype=torch.float32, device=torch.device("cpu")
    )
    return TinyModel(base_model, load_plain(folder))


def load_plain(folder: Path) -> PreTrainedModel:
    plain: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    )
    return cast(PreTrainedModel, plain.eval())


def adapter(base_model: BaseModel, seed: int, *, rank: int = 4, **flags: bool) -> AdapterWeights:
    """Frozen adapter weights that change the model: B is not zero, as it is in a fresh one."""
    state = AdapterState.create(base_model, LoraConfig(rank, seed, **flags))
    generator = torch.Generator().manual_seed(1000 + seed)
    for _, lora_B in state.layout.views(state.master_P).values():
        lora_B.copy_(torch.randn(lora_B.shape, generator=generator) * 0.03)
    state.refresh_weights()
    return state.snapshot_weights()


def random_tokens(num_tokens: int, seed: int) -> Array:
    """Prompt tokens without the end-of-sequence token."""
    return np.random.default_rng(seed).integers(4, VOCAB_SIZE, num_tokens).astype(np.int32)


REPORTS = (
    "prompt_logprobs",
    "topk_prompt_logprobs",
    "topk_sample_logprobs",
    "prompt_alt_tokens_k",
    "prompt_logprobs_last_n",
    "targets",
)


def body(prompt: Sequence[int] | Array, *, num_samples: int = 1, **options: Any) -> SampleBody:
    """A request that stops at nothing unless told.

    ``options`` are those of SamplingParams, and ``REPORTS`` of SampleBody.
    """
    reports = {name: options.pop(name) for name in REPORTS if name in options}
    params: dict[str, Any] = {"max_tokens": 8, "seed": 1, "stop_on_eos": False, **options}
    return SampleBody(
        np.asarray(prompt, np.int32), num_samples, SamplingParams(**params), **reports
    )


def sampler(base_model: BaseModel, **options: Any) -> Sampler:
    given: dict[str, Any] = {"max_kv_tokens": 100_000, "detokenize": detokenize, **options}
    return Sampler(base_model, **given)


def detokenize(tokens: Sequence[int]) -> str:
    """One letter per token: 4 is "a", 5 is "b", and 30 is "a" again."""
    return "".join(chr(ord("a") + (token - 4) % 26) for token in tokens)


def run_until_idle(sampler: Sampler) -> dict[str, SampleResult | Exception]:
    """Step until everything has ended."""
    results: dict[str, SampleResult | Exception] = {}
    while not sampler.is_idle:
        for finished in sampler.step():
            assert finished.request_id not in results, "a request ended twice"
            results[finished.request_id] = finished.result
    return results


def sample(
    base_model: BaseModel,
    body: SampleBody,
    adapter: AdapterWeights | None = None,
    **options: Any,
) -> SampleResult:
    """The result of a request that is alone in a fresh sampler."""
    alone = sampler(base_model, **options)
    alone.admit("alone", body, adapter)
    return succeeded(run_until_idle(alone)["alone"])


def succeeded(result: SampleResult | Exception) -> SampleResult:
    assert isinstance(result, SampleResult), result
    return result


def bits(result: SampleResult | Exception) -> Mapping[str, bytes]:
    """Everything in a result but what it says of the cache, for exact comparison."""
    payload = succeeded(result).to_payload()
    arrays = {name: array.tobytes() for name, array in payload.arrays.items()}
    meta = {name: v for name, v in payload.meta.items() if name != "prompt_cache_hit_tokens"}
    return {**arrays, "meta": repr(meta).encode()}


def tokens_of(sequence: SampledSequence) -> list[int]:
    return sequence.tokens.tolist()


@torch.no_grad()
def plain_logprobs(plain: Any, tokens: Sequence[int] | Array) -> Tensor:
    """Log-probabilities [N, V] after each token, from one full pass of a plain model."""
    input_ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    return torch.log_softmax(plain(input_ids=input_ids).logits[0].float(), -1)


def plain_greedy(plain: Any, prompt: Array, num_tokens: int) -> list[int]:
    """Greedy tokens, with the whole sequence computed again for each."""
    tokens: list[int] = prompt.tolist()
    for _ in range(num_tokens):
        tokens.append(int(plain_logprobs(plain, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
