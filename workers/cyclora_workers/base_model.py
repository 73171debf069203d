"""The frozen base model: the Hugging Face implementation with our attention and linear layers.

Legend: T packed tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cyclora_workers.activation import stabilize_activations
from cyclora_workers.adapter import ModuleGroup, TargetModule
from cyclora_workers.architecture import (
    UnsupportedModel,
    check_class,
    check_config,
    check_passes,
    decoder_layers,
    eos_token_ids,
    module_group,
)
from cyclora_workers.attention import ATTENTION_NAME, UnsupportedAttention
from cyclora_workers.context import ROW_ALIGNMENT, PassContext, Segment, align_rows
from cyclora_workers.cuda.grouped_linear import GroupedLinears, can_group
from cyclora_workers.experts import MultiAdapterExperts
from cyclora_workers.fused_attention import RecordingAttention, fuse_attention
from cyclora_workers.fused_norm import fuse_norms
from cyclora_workers.head import Unembedding
from cyclora_workers.logit_rule import LogitRule
from cyclora_workers.multi_adapter_linear import MultiAdapterLinear, PassHolder
from cyclora_workers.quantized_weight import (
    BaseWeights,
    QuantizedLinear,
    check_base_weights,
    num_quantized_elements,
    quantize_linears,
)
from cyclora_workers.recompute import make_recomputable
from cyclora_workers.routing import router_of
from cyclora_workers.stacked_low_rank import StackedLowRank


class BaseModel:
    """One frozen network that every adapter of this worker shares.

    The Hugging Face modules stay as they are, except that each linear layer of the decoder layers
    knows the adapters of its rows, and that the unembedding is applied apart (``logits`` here, or
    the fused head in training).
    """

    def __init__(self, name: str, model: PreTrainedModel, device: torch.device) -> None:
        """Take over a loaded model; ``load`` is the usual way.

        Raises:
            UnsupportedModel: its architecture needs something that would not be computed.
        """
        self.name = name
        self.config: Any = model.config.get_text_config()
        self.architecture = type(model).__name__
        self.device = device
        self.dtype: torch.dtype = model.dtype
        check_config(self.config)
        # Else transformers looks for its own routers, to compute a loss that nobody asks for.
        model.config.output_router_logits = False

        config = self.config
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_size: int = (
            getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        )
        self.hidden_size: int = config.hidden_size
        self.max_context_length: int = config.max_position_embeddings
        self.eos_token_ids: tuple[int, ...] = eos_token_ids(model)
        self.num_parameters: int = sum(p.numel() for p in model.parameters())
        self.num_parameters += num_quantized_elements(model)
        self.frozen: Sequence[Tensor] = [*model.parameters(), *model.buffers()]

        model.requires_grad_(False).eval()
        if device.type == "cpu":
            for layer in decoder_layers(model.get_decoder()):
                stabilize_activations(layer)
        self._holder = PassHolder(device)
        self._inner: Any = model.get_decoder()
        self.target_modules: list[TargetModule] = _adopt_linears(model, self._inner, self._holder)
        self.grouped: GroupedLinears | None = None
        """Kernels for the device, where there are any."""
        self._fuse()
        make_recomputable(decoder_layers(self._inner), self._holder)
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UnsupportedModel(f"unembedding is {type(head).__name__}; need nn.Linear")
        names = [name for name, module in model.named_modules() if module is head]
        self.unembedding = Unembedding(names[0], head.weight, head.bias, LogitRule.of(config))
        self.vocab_size: int = head.out_features
        self.target_modules.append(
            TargetModule(names[0], head.in_features, head.out_features, ModuleGroup.UNEMBED)
        )
        if can_group(device):
            self.grouped = GroupedLinears(self.linear_names, device)
        check_passes(self, model)

    @torch.no_grad()
    def _fuse(self) -> None:
        """Let modules whose computation we know be computed with fewer operators.

        Raises:
            UnsupportedModel: its attention asks for what ours does not compute.
        """
        fuse_norms(self._inner)
        plan = RecordingAttention([0, ROW_ALIGNMENT])
        context = PassContext([Segment(0, ROW_ALIGNMENT, None)], plan)
        positions_T = torch.arange(ROW_ALIGNMENT, device=self.device)
        tokens_T = positions_T % self.config.vocab_size
        try:
            fuse_attention(
                decoder_layers(self._inner),
                plan,
                lambda: self.hidden(tokens_T, positions_T, context),
            )
        except UnsupportedAttention as error:
            raise UnsupportedModel(str(error)) from error

    @classmethod
    def load(
        cls,
        name: str,
        path: str | Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        base_weights: BaseWeights = "as_loaded",
    ) -> BaseModel:
        """Load from a local folder, or by Hugging Face name.

        Raises:
            UnsupportedModel: its architecture needs something that would not be computed.
        """
        config: Any = AutoConfig.from_pretrained(str(path))
        check_class(config)
        check_config(config.get_text_config())
        check_base_weights(base_weights, config.get_text_config())
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(path), config=config, dtype=dtype, attn_implementation=ATTENTION_NAME
        )
        if base_weights != "as_loaded":
            quantize_linears(model, base_weights)
        base_model = cls(name, model.to(device), device)
        if not base_model.eos_token_ids and Path(path, "tokenizer_config.json").exists():
            eos_token_id: Any = AutoTokenizer.from_pretrained(str(path)).eos_token_id
            base_model.eos_token_ids = () if eos_token_id is None else (eos_token_id,)
        return base_model

    @property
    def linear_names(self) -> list[str]:
        """Linear layers that may be told of their rows' adapters, the unembedding among them.

        Also those that no adapter targets, such as routers.
        """
        found = [m.name for m in self._inner.modules() if isinstance(m, MultiAdapterLinear)]
        return [*found, self.unembedding.name]

    @property
    def heads_per_group(self) -> int:
        """Query heads per key-value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def embedding(self) -> nn.Module:
        """The frozen layer that tokens enter by."""
        return self._inner.get_input_embeddings()

    def hidden(self, tokens_T: Tensor, positions_T: Tensor, context: PassContext) -> Tensor:
        """Final-norm hidden states of packed tokens; under autograd when gradients are enabled.

        Rows are padded to ``ROW_ALIGNMENT`` inside, so the bits of one tenant's rows do not depend
        on how many rows there are beside them.

        Shapes:
            tokens_T, positions_T: int64. Returns [T, D] in the model's dtype.
        """
        num_tokens = tokens_T.shape[0]
        padding = (0, align_rows(num_tokens) - num_tokens)
        output = self.call(
            self._inner,
            functional.pad(tokens_T, padding),
            functional.pad(positions_T, padding),
            context,
        )
        return output.last_hidden_state[0, :num_tokens]

    def call(
        self, module: nn.Module, tokens_T: Tensor, positions_T: Tensor, context: PassContext
    ) -> Any:
        """Call a Hugging Face module of this model while its linear layers see ``context``."""
        assert self._holder.context is None, "a pass of this base model is running already"
        if self.grouped is not None:
            context = self.grouped.prepared(context)
        self._holder.context = context
        try:
            return module(
                input_ids=tokens_T.unsqueeze(0),
                position_ids=positions_T.unsqueeze(0),
                use_cache=False,
                pass_context=context,
            )
        finally:
            self._holder.context = None

    def logits(
        self,
        hidden_TD: Tensor,
        segments: Sequence[Segment],
        stacked: StackedLowRank | None = None,
    ) -> Tensor:
        """Unembed hidden states with the segments' adapters; the fused head gives equal bits.

        ``stacked`` are those of the segments that are computed together.

        Shapes:
            Returns [T, V] fp32.
        """
        num_rows = hidden_TD.shape[0]
        padded_TD = functional.pad(hidden_TD, (0, 0, 0, align_rows(num_rows) - num_rows))
        grouped = None
        if self.grouped is not None:
            grouped = self.grouped.low_rank(segments, self.unembedding.name)
        return self.unembedding.sampled_logits(padded_TD, segments, stacked, grouped)[:num_rows]


def _adopt_linears(
    model: PreTrainedModel, inner: nn.Module, holder: PassHolder
) -> list[TargetModule]:
    """Replace the linear layers of the decoder layers by ours; returns them in model order."""
    prefixes = {module: name for name, module in model.named_modules()}
    targets: list[TargetModule] = []
    for layer in decoder_layers(inner):
        targets += _adopt_mixtures(layer, prefixes[layer], holder)
        for path, linear in list(layer.named_modules()):
            if not (type(linear) is nn.Linear or isinstance(linear, QuantizedLinear)):
                continue
            name = f"{prefixes[layer]}.{path}"
            features = (linear.in_features, linear.out_features)
            targets.append(TargetModule(name, *features, module_group(path)))
            parent, _, child = path.rpartition(".")
            setattr(layer.get_submodule(parent), child, MultiAdapterLinear(name, linear, holder))
    if not targets:
        raise UnsupportedModel("no nn.Linear inside the decoder layers; nothing to adapt")
    return targets


def _adopt_mixtures(layer: Any, prefix: str, holder: PassHolder) -> list[TargetModule]:
    """Replace the routers and experts of a decoder layer by ours.

    A router gets no adapter: its linear layer is no target module.
    """
    targets: list[TargetModule] = []
    for path, module in list(layer.named_modules()):
        parent, _, child = path.rpartition(".")
        name = f"{prefix}.{path}"
        kind = type(module).__name__
        if kind.endswith("TopKRouter"):
            setattr(layer.get_submodule(parent), child, router_of(name, module, holder))
        elif kind.endswith("Experts"):
            experts = MultiAdapterExperts(name, module, holder)
            setattr(layer.get_submodule(parent), child, experts)
            targets += [
                TargetModule(
                    each.name,
                    each.in_features,
                    each.out_features,
                    ModuleGroup.MLP,
                    each.num_experts,
                    module.config.num_experts_per_tok,
                )
                for each in (experts.gate_up, experts.down)
            ]
    return targets
