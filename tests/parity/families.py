"""One tiny model of each family that is served; what makes a family its own is switched on.

Sizes are as small as the family allows, every sliding window is shorter than the data, and vectors
(norms, biases) are random, so that one which is left out is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 400,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model, and what its tiny configuration changes in the common shape."""

    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    left_out: tuple[str, ...] = ()

    def make(self) -> PreTrainedModel:
        """A plain model, random, the same at every call."""
        torch.manual_seed(1)
        shape = {key: value for key, value in _SHAPE.items() if key not in self.left_out}
        config = AutoConfig.for_model(self.model_type, **(shape | dict(self.changes)))
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.eval()


_WINDOW: dict[str, Any] = {"sliding_window": 8}
_GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 20, **_WINDOW}
_GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.5,
    "logits_scaling": 0.25,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
_UNGROUPED = ("num_key_value_heads",)

FAMILIES: dict[str, Family] = {
    "apertus": Family("apertus", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "arcee": Family("arcee", {"head_dim": 8}),
    "cohere": Family("cohere", {"logit_scale": 2.0, "use_qk_norm": True}),
    "cohere2": Family("cohere2", {"logit_scale": 2.0, **_WINDOW}),
    "ernie4_5": Family("ernie4_5", {"head_dim": 8}),
    "exaone4": Family("exaone4", {"sliding_window_pattern": 2, **_WINDOW}),
    "gemma": Family("gemma", {"head_dim": 16}),
    "gemma2 without attention cap": Family("gemma2", {**_GEMMA, "attn_logit_softcapping": None}),
    "gemma3 text": Family("gemma3_text", {**_GEMMA, "sliding_window_pattern": 2}),
    "glm": Family("glm", {"head_dim": 8}),
    "glm4": Family("glm4", {"head_dim": 8}),
    "gpt-neox": Family("gpt_neox", left_out=_UNGROUPED),
    "gpt-oss": Family("gpt_oss", {
        **_EXPERTS, "num_local_experts": 5, "head_dim": 16, "swiglu_limit": 1.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **_WINDOW,
    }),
    "granite": Family("granite", _GRANITE),
    "helium": Family("helium", {"head_dim": 8}),
    "hunyuan dense": Family("hunyuan_v1_dense", {"head_dim": 8}),
    "internlm3": Family("internlm3", {"head_dim": 8}),
    "llama": Family("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }}),
    "ministral": Family("ministral", {"head_dim": 8, **_WINDOW}),
    "mistral": Family("mistral", {"head_dim": 8, **_WINDOW}),
    "mixtral": Family("mixtral", {**_EXPERTS, "num_local_experts": 4, "head_dim": 8}),
    "nanochat": Family("nanochat", {"final_logit_softcapping": 2.0}),
    "olmo": Family("olmo", {"clip_qkv": 1.0}),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", {
        **_WINDOW, "layer_types": ["sliding_attention", "full_attention"],
    }),
    "olmoe": Family("olmoe", {**_EXPERTS, "num_experts": 4}),
    "opt": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, left_out=_UNGROUPED),
    "phi": Family("phi", {"partial_rotary_factor": 0.5}),
    "phi3": Family("phi3"),
    "qwen2": Family("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **_WINDOW}),
    "qwen3": Family("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-moe": Family("qwen3_moe", {
        **_EXPERTS, "num_experts": 6, "head_dim": 16, "moe_intermediate_size": 24,
        "num_experts_per_tok": 3, "norm_topk_prob": True,
    }),
    "seed-oss": Family("seed_oss", {"head_dim": 8}),
    "smollm3": Family("smollm3", {"no_rope_layers": [1, 0]}),
    "starcoder2": Family("starcoder2", _WINDOW),
    "vaultgemma": Family("vaultgemma", {**_GEMMA, "attn_logit_softcapping": None}),
}  # fmt: skip
"""What docs/models.md lists as tested."""
