"""Attention with sinks: per query head one more score, of a key whose value is zero.

::

    out = sum_l exp(s_l) v_l / (exp(sink) + sum_l exp(s_l))

With the log-sum-exp of the scores that is the usual attention, scaled; and a fused backward that is
given the scaled output, and the log-sum-exp with the sink in it, computes its gradient::

    lse' = log(exp(lse) + exp(sink));   out' = out * exp(lse - lse')
    p = exp(s - lse');   ds = p * (dout' v^T - sum(dout' * out'))

Legend: S sequences, N query heads, G key-value heads, L queries, K keys, H head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_aten: Any = torch.ops.aten


def attend_heads(
    query_SNLH: Tensor,
    key_SGKH: Tensor,
    value_SGKH: Tensor,
    scaling: float,
    visible_LK: Tensor | None,
    sinks_N: Tensor | None,
) -> Tensor:
    """Attention of grouped heads under autograd, with or without sinks; causal without a mask.

    Shapes:
        visible_LK: bool. Returns [S, N, L, H].
    """
    if sinks_N is None:
        return functional.scaled_dot_product_attention(
            query_SNLH,
            key_SGKH,
            value_SGKH,
            attn_mask=visible_LK,
            is_causal=visible_LK is None,
            scale=scaling,
            enable_gqa=query_SNLH.shape[1] != key_SGKH.shape[1],
        )
    repeats = query_SNLH.shape[1] // key_SGKH.shape[1]
    mask_LK = None
    if visible_LK is not None:
        mask_LK = torch.where(visible_LK, 0.0, float("-inf")).to(query_SNLH.dtype)
    return attend_with_sinks(
        query_SNLH,
        key_SGKH.repeat_interleave(repeats, 1),
        value_SGKH.repeat_interleave(repeats, 1),
        sinks_N,
        scaling,
        mask_LK,
    )


def attend_with_sinks(
    query_SNLH: Tensor,
    key_SNKH: Tensor,
    value_SNKH: Tensor,
    sinks_N: Tensor,
    scaling: float,
    mask_LK: Tensor | None,
) -> Tensor:
    """Attention under autograd; causal without a mask. The sinks are frozen.

    Shapes:
        sinks_N: anything that broadcasts to [S, N]; mask_LK: additive. Returns [S, N, L, H].
    """
    if query_SNLH.device.type == "cpu":
        attended: Tensor = _SinkFunction.apply(  # type: ignore[no-untyped-call]
            query_SNLH, key_SNKH, value_SNKH, sinks_N, scaling, mask_LK
        )
        return attended
    return attend_in_parts(query_SNLH, key_SNKH, value_SNKH, sinks_N, scaling, mask_LK)


def attend_in_parts(
    query_SNLH: Tensor,
    key_SNKH: Tensor,
    value_SNKH: Tensor,
    sinks_N: Tensor,
    scaling: float,
    mask_LK: Tensor | None,
) -> Tensor:
    """The same, product by product: for devices without a fused kernel that tells its lse."""
    scores_SNLK = torch.matmul(query_SNLH, key_SNKH.transpose(2, 3)).float() * scaling
    if mask_LK is None:
        later_LK = torch.ones_like(scores_SNLK[0, 0], dtype=torch.bool).triu(1)
        scores_SNLK = scores_SNLK.masked_fill(later_LK, float("-inf"))
    else:
        scores_SNLK = scores_SNLK + mask_LK
    sinks_SNL1 = sinks_N.float()[..., None, None].expand(*scores_SNLK.shape[:-1], 1)
    weights = torch.softmax(torch.cat((scores_SNLK, sinks_SNL1), -1), -1)[..., :-1]
    return torch.matmul(weights.to(value_SNKH.dtype), value_SNKH)


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention without sinks becomes with them, and its log-sum-exp.

    By a softmax over pairs, a kernel that treats each pair alike; an element-wise exponential
    treats the last elements of a tensor differently.

    Shapes:
        out: [..., H]; lse: [...] fp32; sinks broadcasts to lse.
    """
    pairs = torch.stack((lse, sinks.float().expand_as(lse)), -1)
    weights = torch.softmax(pairs, -1)[..., :1]
    return (out * weights).to(out.dtype), torch.logsumexp(pairs, -1)


class _SinkFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor,
        scaling: float,
        mask: Tensor | None,
    ) -> Tensor:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, mask is None, attn_mask=mask, scale=scaling
        )
        out, lse = add_sinks(out, lse, sinks[..., None])
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value, out, lse, mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, mask = ctx.saved_tensors
        gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_outputs[0], query, key, value, out, lse, 0.0, mask is None,
            attn_mask=mask, scale=ctx.scaling,
        )  # fmt: skip
        return (*gradients, None, None, None)
