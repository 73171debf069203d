"""Training with plain transformers, PEFT and autograd, one adapter and one datum at a time."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from cyclora_core.losses import LOSS_RULES
from cyclora_core.operations import Datum, PassBody
from cyclora_core.peft import LORA_ALPHA
from cyclora_workers.adapter import AdapterState


@contextmanager
def quiet_peft() -> Generator[None]:
    """PEFT calls a deprecated property of transformers, and remarks that merging an adapter on a
    tied unembedding needs care; nothing is merged here. Ranks of parameters it follows, but says
    that it does not, because it looks for them among the modules.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
        yield


class PeftReference:
    """A plain model with one PEFT adapter that starts with the weights of one of ours."""

    def __init__(self, model: PreTrainedModel, state: AdapterState) -> None:
        modules, rank = state.layout.modules, state.layout.lora_rank
        experts = {
            ".".join(m.name.split(".")[-2:]): max(1, rank // m.num_active_experts)
            for m in modules
            if m.num_experts
        }
        config = LoraConfig(
            r=rank,
            lora_alpha=LORA_ALPHA,
            target_modules=sorted({m.name.split(".")[-1] for m in modules if not m.num_experts}),
            target_parameters=sorted(experts) or None,
            rank_pattern=experts,
            lora_dropout=0.0,
        )
        with quiet_peft():
            self.model: Any = get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, ours in state.layout.views(state.master_P).items():
                for theirs, tensor in zip(self.pair(name), _as_peft(ours), strict=True):
                    theirs.copy_(tensor)

    def pair(self, module_name: str) -> tuple[Any, Any]:
        """The parameters A and B of a module."""
        module: Any = self.model
        for part in ("base_model", "model", *module_name.split(".")):
            if not hasattr(module, "parameter_name"):
                module = getattr(module, part)
                continue
            while module.parameter_name != part:
                module = module.base_layer
        return module.lora_A["default"].weight, module.lora_B["default"].weight

    @property
    def trainable(self) -> list[Any]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def logprobs(self, datum: Datum) -> Tensor:
        """Log-probabilities of the targets; [N], or [N, K] for top-K targets."""
        logits = self.model(torch.from_numpy(datum.tokens).long()[None]).logits[0].float()
        targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"])
        columns = targets.reshape(len(targets), -1)
        return logits.log_softmax(-1).gather(1, columns).view(targets.shape)

    def forward_backward(self, body: PassBody) -> tuple[float, list[Tensor]]:
        """Accumulate gradients; returns the loss and the logprobs of each datum."""
        total, logprobs = 0.0, list[Tensor]()
        for datum in body.data:
            found = self.logprobs(datum)
            loss = reference_loss(body, datum, found)
            loss.backward()
            total += loss.item()
            logprobs.append(found.detach())
        return total, logprobs

    def compare_gradients(self, state: AdapterState) -> list[tuple[Tensor, Tensor]]:
        """Ours and theirs, for each A and B."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, ours in state.layout.views(state.gradient_P).items():
            pairs += [(o, t.grad) for o, t in zip(_as_peft(ours), self.pair(name), strict=True)]
        return pairs

    def compare_weights(self, state: AdapterState) -> list[tuple[Tensor, Tensor]]:
        """Ours and theirs, for each A and B."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, ours in state.layout.views(state.master_P).items():
            pairs += [(o, t.detach()) for o, t in zip(_as_peft(ours), self.pair(name), strict=True)]
        return pairs


def _as_peft(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A and B of all experts as PEFT keeps them: A by expert and row, B by row and expert."""
    lora_A, lora_B = pair
    if lora_A.ndim == 2:
        return pair
    return lora_A.flatten(0, 1), torch.einsum("efr->fre", lora_B).flatten(1)


def reference_loss(body: PassBody, datum: Datum, logprobs: Tensor) -> Tensor:
    """The published formulas, left to autograd."""
    inputs = {key: torch.from_numpy(value) for key, value in datum.loss_fn_inputs.items()}
    config = {**LOSS_RULES[body.loss_fn].config, **body.loss_fn_config}
    if body.loss_fn == "cross_entropy":
        return -(logprobs * inputs["weights"]).sum()
    advantages, difference = inputs["advantages"], logprobs - inputs["logprobs"]
    ratio = difference.exp()
    if body.loss_fn == "gspo":
        mean = difference.detach()[inputs["sequence_ratio_mask"] != 0].mean()
        ratio = torch.exp(mean + logprobs - logprobs.detach())
    low, high = (
        torch.as_tensor(inputs.get(key, config.get(key, 0.0)))
        for key in ("clip_low_threshold", "clip_high_threshold")
    )
    if body.loss_fn == "importance_sampling":
        return -(ratio * advantages).sum()
    if body.loss_fn in ("ppo", "gspo"):
        clipped = torch.clamp(ratio, low, high)
        return -torch.minimum(ratio * advantages, clipped * advantages).sum()
    if body.loss_fn == "cispo":
        return -(torch.clamp(ratio, low, high).detach() * logprobs * advantages).sum()
    assert body.loss_fn == "dro"
    return -(logprobs * advantages - config["beta"] / 2 * difference**2).sum()
