"""Projections, head norms and rotary positions of an attention module with fewer operators.

transformers writes them as some twenty element-wise operators on heads, each with a backward of
its own that pads slices with zeros. Here query and key take one autograd function each.

Legend: T packed tokens, D hidden, N heads, H head size, J half of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cyclora_workers.attention import PackedAttention, attention_forward
from cyclora_workers.fused_norm import (
    FusedRMSNorm,
    is_same,
    normalized,
    normalized_backward_,
)

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("q_norm", "k_norm")


class _RotatedFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TNH: Tensor, norm: FusedRMSNorm | None, cos_T1H: Tensor, sin_T1H: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_TNH, cos_T1H, sin_T1H)
        ctx.norm = norm
        return _normed_and_rotated(x_TNH, norm, cos_T1H, sin_T1H)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        x_TNH, cos_T1H, sin_T1H = ctx.saved_tensors
        norm: FusedRMSNorm | None = ctx.norm
        dheads_TNH = _rotated_backward(grad_outputs[0].float(), cos_T1H, sin_T1H)
        if norm is not None:
            normalized_TNH, factor_TN1 = normalized(x_TNH.float(), norm.eps)
            dheads_TNH.mul_(norm.weight)
            dheads_TNH = normalized_backward_(dheads_TNH, normalized_TNH, factor_TN1)
        return dheads_TNH.to(x_TNH.dtype), None, None, None


def _normed_and_rotated(
    x_TNH: Tensor, norm: FusedRMSNorm | None, cos_T1H: Tensor, sin_T1H: Tensor
) -> Tensor:
    heads_TNH = x_TNH.float()
    if norm is not None:
        heads_TNH, _ = normalized(heads_TNH, norm.eps)
        heads_TNH.mul_(norm.weight)
    return _rotated(heads_TNH, cos_T1H, sin_T1H).to(x_TNH.dtype)


def _rotated(x_TNH: Tensor, cos_T1H: Tensor, sin_T1H: Tensor) -> Tensor:
    """Rotary positions, the halves of a head being the two coordinates.

    ::

        y = x cos + (-x[J:], x[:J]) sin

    Products and sums are apart: together, torch may round the last elements of a thread's share
    another way, and where that ends depends on the neighbours.
    """
    half = x_TNH.shape[-1] // 2
    y_TNH = x_TNH * cos_T1H
    y_TNH[..., :half] -= x_TNH[..., half:] * sin_T1H[..., :half]
    y_TNH[..., half:] += x_TNH[..., :half] * sin_T1H[..., half:]
    return y_TNH


def _rotated_backward(dy_TNH: Tensor, cos_T1H: Tensor, sin_T1H: Tensor) -> Tensor:
    half = dy_TNH.shape[-1] // 2
    dx_TNH = dy_TNH * cos_T1H
    dx_TNH[..., half:] -= dy_TNH[..., :half] * sin_T1H[..., :half]
    dx_TNH[..., :half] += dy_TNH[..., half:] * sin_T1H[..., half:]
    return dx_TNH


class FusedAttention(nn.Module):
    """Stands in for an attention module of the base model, and has its linear layers."""

    def __init__(self, original: Any, head_size: int, scaling: float, window: int | None) -> None:
        super().__init__()
        self.q_proj: nn.Module = original.q_proj
        self.k_proj: nn.Module = original.k_proj
        self.v_proj: nn.Module = original.v_proj
        self.o_proj: nn.Module = original.o_proj
        self.q_norm: FusedRMSNorm | None = getattr(original, "q_norm", None)
        self.k_norm: FusedRMSNorm | None = getattr(original, "k_norm", None)
        self.layer_idx: int = original.layer_idx
        self.head_size = head_size
        self.scaling = scaling
        self.sliding_window = window

    @property
    def normalizes_heads(self) -> bool:
        """Whether its norms, if any, are over one head each, not over all heads together."""
        norms = [norm for norm in (self.q_norm, self.k_norm) if norm is not None]
        return all(norm.weight.shape == (self.head_size,) for norm in norms)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: object = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Shapes: hidden_states [1, T, D]; cosines and sines [1, T, H]. Returns [1, T, D]."""
        assert past_key_values is None, "keys and values are kept by the attention plan"
        heads = self.heads(hidden_states, position_embeddings)
        attended_1TNH, _ = attention_forward(
            self, *heads, attention_mask, self.scaling, self.sliding_window, **others
        )
        return self.o_proj(attended_1TNH.flatten(2)), None

    def heads(
        self, hidden_1TD: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as attention wants them, each [1, N, T, H]."""
        cos_T1H, sin_T1H = (each[0].float().unsqueeze(1) for each in position_embeddings)

        def rotated(projection: nn.Module, norm: FusedRMSNorm | None) -> Tensor:
            x_TNH = projection(hidden_1TD)[0].unflatten(-1, (-1, self.head_size))
            function: Any = (
                _RotatedFunction.apply if torch.is_grad_enabled() else _normed_and_rotated
            )
            y_TNH: Tensor = function(x_TNH, norm, cos_T1H, sin_T1H)
            return y_TNH.transpose(0, 1).unsqueeze(0)

        value_TNH = self.v_proj(hidden_1TD)[0].unflatten(-1, (-1, self.head_size))
        return (
            rotated(self.q_proj, self.q_norm),
            rotated(self.k_proj, self.k_norm),
            value_TNH.transpose(0, 1).unsqueeze(0),
        )


class RecordingAttention:
    """An attention plan that attends as usual and remembers what each layer asked for."""

    def __init__(self, cu_seqlens: Sequence[int]) -> None:
        self.asked: dict[int, tuple[int, float, int | None]] = {}
        """Head size, scaling and sliding window by layer."""
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
        """Implements ``AttentionPlan.attend``."""
        self.asked[layer_index] = (query_NTH.shape[-1], scaling, sliding_window)
        return self._plan.attend(
            layer_index, query_NTH, key_GTH, value_GTH, scaling, sliding_window, sinks_N
        )


def fuse_attention(
    layers: Sequence[nn.Module], plan: RecordingAttention, run: Callable[[], object]
) -> int:
    """Replace the attention modules that compute what ours does; returns how many there were.

    Found out in a pass, from what each returns. Those that hold more than projections and norms
    (sinks, a gate) or rotate only part of a head stay as they are.

    Args:
        layers: The decoder layers, their RMSNorms already fused.
        plan: What ``run`` attends with.
        run: Runs a pass over a few tokens.
    """
    candidates = {
        child: (parent, name)
        for layer in layers
        for parent in layer.modules()
        for name, child in parent.named_children()
        if _may_be_fused(child)
    }
    fused: dict[nn.Module, FusedAttention] = {}

    def compare(module: nn.Module, args: object, given: dict[str, Any], output: Any) -> None:
        asked = plan.asked.get(cast(Any, module).layer_idx)
        if args or asked is None or not {"hidden_states", "position_embeddings"} <= given.keys():
            return
        if given["position_embeddings"][0].shape[-1] != asked[0]:
            return
        candidate = FusedAttention(module, *asked)
        if not candidate.normalizes_heads:
            return
        if is_same(candidate(**given)[0], output[0]):
            fused[module] = candidate

    hooks = [child.register_forward_hook(compare, with_kwargs=True) for child in candidates]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for child, replacement in fused.items():
        parent, name = candidates[child]
        setattr(parent, name, replacement)
    return len(fused)


def _may_be_fused(module: nn.Module) -> bool:
    children = dict(module.named_children())
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    norms = [children[name] for name in _NORMS if name in children]
    return (
        hasattr(module, "layer_idx")
        and not own
        and set(_PROJECTIONS) <= children.keys() <= {*_PROJECTIONS, *_NORMS}
        and all(isinstance(norm, FusedRMSNorm) for norm in norms)
    )
