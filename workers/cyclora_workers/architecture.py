"""Which architectures can be served: found out when loading, not when a tenant's numbers are off.

transformers knows more kinds of model than we compute faithfully. What is known to matter is
refused by its configuration; what is not known is found by running two tiny passes and looking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from cyclora_workers.adapter import ModuleGroup
from cyclora_workers.attention import PackedAttention, UnsupportedAttention
from cyclora_workers.context import ROW_ALIGNMENT, PassContext, Segment

if TYPE_CHECKING:
    from cyclora_workers.base_model import BaseModel

MIXTURES = ("gpt_oss", "mixtral", "olmoe", "qwen3_moe")
"""Mixtures of experts whose routers are known; ``routing.py`` says how they choose."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class UnsupportedModel(ValueError):
    """The base model cannot be served; whoever started the worker must choose another."""


def check_class(config: PreTrainedConfig) -> None:
    """Refuse by the class that transformers would build, before any weight is read.

    Raises:
        UnsupportedModel: it is no causal language model, or its attention cannot be replaced.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"{config.model_type} is no causal language model of transformers")
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(found, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{found.__name__} does not let its attention be replaced; supported are classes of "
            "transformers that do"
        )


def is_mixture(config: Any) -> bool:
    """Whether the decoder layers have experts."""
    return any(getattr(config, key, None) for key in _EXPERTS)


def check_config(config: Any) -> None:
    """Refuse by configuration.

    Raises:
        UnsupportedModel: weights stored quantised, soft-capped attention, compressed keys and
            values, experts, or rotary positions that depend on what else is in the batch.
    """
    name = config.model_type
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(
            f"the weights of {name} are stored quantised; supported are float32, float16 and "
            "bfloat16"
        )
    if getattr(config, "attn_logit_softcapping", None):
        # Fused attention kernels have no cap, and the scores of a pass are never formed.
        raise UnsupportedModel(
            f"{name} caps its attention scores (attn_logit_softcapping = "
            f"{config.attn_logit_softcapping}); this is not supported"
        )
    if getattr(config, "kv_lora_rank", None):
        raise UnsupportedModel(
            f"{name} compresses keys and values (kv_lora_rank = {config.kv_lora_rank}); supported "
            "are heads whose keys and values are of one size"
        )
    for key in _EXPERTS:
        if getattr(config, key, None) and name not in MIXTURES:
            raise UnsupportedModel(
                f"{name} is a mixture of experts ({key} = {getattr(config, key)}); supported are "
                f"{', '.join(MIXTURES)} and dense models"
            )
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        # PEFT takes the names of dense feed-forward layers for those of experts.
        raise UnsupportedModel(
            f"{name} has dense layers among those of experts; supported are experts in every layer"
        )
    for rope_type in _rope_types(getattr(config, "rope_parameters", None) or {}):
        # "dynamic" and "longrope" choose frequencies by the longest sequence of the whole pass:
        # a tenant's numbers would depend on its neighbours.
        if rope_type not in _STATIC_ROPE:
            raise UnsupportedModel(
                f"{name} has rope_type {rope_type!r}; supported are {', '.join(_STATIC_ROPE)}"
            )


def _rope_types(parameters: dict[str, Any]) -> Iterator[str]:
    """Rotary parameters are one dict, or one dict per kind of layer."""
    for value in parameters.values():
        if isinstance(value, dict):
            yield from _rope_types(value)  # pyright: ignore[reportUnknownArgumentType]
    if "rope_type" in parameters:
        yield parameters["rope_type"]


def decoder_layers(inner: nn.Module) -> list[nn.Module]:
    """The decoder layers of the inner model.

    Raises:
        UnsupportedModel: it has none, or they hold experts.
    """
    layers = getattr(inner, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModel(f"{type(inner).__name__} has no list of decoder layers")
    for module in layers.modules():
        kind = type(module).__name__.lower()
        if ("expert" in kind or "moe" in kind) and _model_type(inner) not in MIXTURES:
            raise UnsupportedModel(
                f"{type(module).__name__} holds experts; supported are {', '.join(MIXTURES)} and "
                "dense models"
            )
    return list(layers)


def _model_type(inner: nn.Module) -> str:
    config: Any = inner.config
    return config.model_type


def module_group(path: str) -> ModuleGroup:
    """The group of a linear layer, by its path inside the decoder layer."""
    return ModuleGroup.ATTN if "attn" in path or "attention" in path else ModuleGroup.MLP


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Tokens that end a text: the generation config's, or else the model config's."""
    for config in (model.generation_config, model.config.get_text_config()):
        value: int | list[int] | None = getattr(config, "eos_token_id", None)
        if value is not None:
            return (value,) if isinstance(value, int) else tuple(value)
    return ()


class _Witness:
    """An attention plan that attends as usual and remembers what it was asked."""

    def __init__(self, cu_seqlens: Sequence[int]) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self._plan = PackedAttention(cu_seqlens)

    def attend(
        self,
        layer_index: int,
        query_NTH: Tensor,
        key_GTH: Tensor,
        value_GTH: Tensor,
        scaling: float,
        sliding_window: int | None,
        sinks_N: Tensor | None = None,
    ) -> Tensor:
        self.calls.append((layer_index, key_GTH.shape[0], key_GTH.shape[2]))
        return self._plan.attend(
            layer_index, query_NTH, key_GTH, value_GTH, scaling, sliding_window, sinks_N
        )


@torch.no_grad()
def check_passes(base_model: BaseModel, model: PreTrainedModel) -> None:
    """Run the same two tokens several times in one pack and look at what happens.

    Raises:
        UnsupportedModel: a layer mixes tokens by other means than attention (a convolution or a
            recurrent state would leak from one tenant's sequence into the next), the key-value
            heads are not what the configuration says, its attention asks for what ours does not
            compute, or the model's own logits are not those of our unembedding.
    """
    num_sequences = ROW_ALIGNMENT // 2
    witness = _Witness(range(0, ROW_ALIGNMENT + 1, 2))
    context = PassContext([Segment(0, ROW_ALIGNMENT, None)], witness)
    positions_T = torch.tensor([0, 1] * num_sequences, device=base_model.device)
    tokens_T = (positions_T + 1) % base_model.vocab_size
    try:
        hidden_TD = base_model.hidden(tokens_T, positions_T, context)
    except UnsupportedAttention as error:
        raise UnsupportedModel(str(error)) from error

    expected = [
        (layer, base_model.num_kv_heads, base_model.head_size)
        for layer in range(base_model.num_layers)
    ]
    if sorted(witness.calls) != expected:
        raise UnsupportedModel(
            f"{base_model.config.model_type} attends as (layer, heads, head size) {witness.calls}; "
            f"supported is once per layer, {expected}"
        )
    if not torch.equal(hidden_TD, hidden_TD[:2].repeat(num_sequences, 1)):
        raise UnsupportedModel(
            f"{base_model.config.model_type} mixes packed sequences outside of attention"
        )
    own_TV: Tensor = base_model.call(model, tokens_T, positions_T, context).logits[0].float()
    logits_TV = base_model.logits(hidden_TD, context.segments)
    tolerance = 16 * torch.finfo(base_model.dtype).eps * float(own_TV.abs().max())
    if not torch.allclose(own_TV, logits_TV, rtol=0.0, atol=tolerance):
        raise UnsupportedModel(
            f"{base_model.config.model_type} does more for its logits than a matrix product"
        )
