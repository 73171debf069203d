"""Attention to some of the keys, to be joined with attention to others, forward and backward.

Softmax over several parts of the keys is a weighted mean of the softmax over each::

    lse = log(sum_i exp(lse_i)),    out = sum_i exp(lse_i - lse) * out_i

The gradient of a part follows from the joined ``out`` and ``lse`` alone, with the probabilities
``exp(scores - lse)``: so nothing flows backward through the join itself.

Source:
    Milakov and Gimelshein, 2018, arXiv 1805.02867; Dao et al., 2022, arXiv 2205.14135, appendix B.

Legend: N query heads, G key-value heads, M query heads per key-value head, L queries, S keys,
H head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cyclora_workers.attention_products import product_gradients, takes_products

_MAX_SCORES = 1 << 22
"""Where scores are written out, as many exist at one time for each head, or one row of them."""

_MIN_BF16_SCORES = 512 * 512
"""Smaller parts in bf16 are computed in fp32 on a CPU: torch's kernel for bf16 takes several times
as long for them, above all backward (docs/log.md)."""


def attend_part(
    query_NLH: Tensor, key_GSH: Tensor, value_GSH: Tensor, scaling: float, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention to all given keys; causal where L = S and each query is at the key of its index.

    Shapes:
        Returns [N, L, H], and the log-sum-exp of the scores [N, L] fp32.
    """
    if query_NLH.device.type != "cpu":
        return _written_out(query_NLH, key_GSH, value_GSH, scaling, is_causal=is_causal)
    heads = _operands(query_NLH, key_GSH, value_GSH)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    out_1NLH, lse_1NL = kernel(*heads, 0.0, is_causal, scale=scaling)
    return out_1NLH[0], lse_1NL[0]


def part_gradients(
    gradient_NLH: Tensor,
    query_NLH: Tensor,
    key_GSH: Tensor,
    value_GSH: Tensor,
    out_NLH: Tensor,
    lse_NL: Tensor,
    scaling: float,
    *,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a part adds to the gradients of its queries, keys and values.

    ``gradient_NLH`` is d loss / d out; it, ``out_NLH`` and ``lse_NL`` are those of all parts of
    these queries together.
    """
    heads = (query_NLH, key_GSH, value_GSH)
    if query_NLH.device.type != "cpu":
        return _gradients_written_out(
            gradient_NLH, *heads, out_NLH, lse_NL, scaling, is_causal=is_causal
        )
    if takes_products(query_NLH.dtype, query_NLH.shape[1], key_GSH.shape[1]):
        gradient_NLH = gradient_NLH.to(query_NLH.dtype)
        return product_gradients(
            gradient_NLH, *heads, out_NLH, lse_NL, scaling, is_causal=is_causal
        )
    query, key, value = _operands(*heads)
    gradient, out = (each.unsqueeze(0).to(query.dtype) for each in (gradient_NLH, out_NLH))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    lse = lse_NL.unsqueeze(0).contiguous()
    found = kernel(gradient, query, key, value, out, lse, 0.0, is_causal, scale=scaling)
    return found[0][0], found[1][0], found[2][0]


def join_part_(out_LNH: Tensor, lse_NL: Tensor, part_NLH: Tensor, part_lse_NL: Tensor) -> None:
    """Join another part of the same queries to what is known so far, in place.

    Shapes:
        out_LNH and lse_NL: fp32.
    """
    joined_NL = torch.logaddexp(lse_NL, part_lse_NL)
    out_LNH.mul_(_per_query(lse_NL - joined_NL))
    out_LNH.addcmul_(part_NLH.transpose(0, 1).float(), _per_query(part_lse_NL - joined_NL))
    lse_NL.copy_(joined_NL)


def _per_query(logarithm_NL: Tensor) -> Tensor:
    return logarithm_NL.exp().t().unsqueeze(2)


def _operands(*heads: Tensor) -> list[Tensor]:
    """A batch of one, in the dtype that the kernel is fast in."""
    num_scores = heads[0].shape[1] * heads[1].shape[1]
    dtype = torch.float32 if num_scores < _MIN_BF16_SCORES else heads[0].dtype
    return [each.unsqueeze(0).to(dtype) for each in heads]


def _written_out(
    query_NLH: Tensor, key_GSH: Tensor, value_GSH: Tensor, scaling: float, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """``attend_part`` of any device, as plain products over some of the queries at a time."""
    num_keys = key_GSH.shape[1]
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for rows in _slices(query_NLH.shape[1], num_keys):
        scores_GMLS = _scores(query_NLH, key_GSH, rows, scaling, is_causal)
        lse_GML = scores_GMLS.logsumexp(-1)
        weights_GMLS = (scores_GMLS - lse_GML.unsqueeze(-1)).exp_()
        out_GMLH = weights_GMLS.to(value_GSH.dtype) @ value_GSH.unsqueeze(1)
        outs.append(out_GMLH.flatten(0, 1))
        lses.append(lse_GML.flatten(0, 1))
    return torch.cat(outs, 1), torch.cat(lses, 1)


def _gradients_written_out(
    gradient_NLH: Tensor,
    query_NLH: Tensor,
    key_GSH: Tensor,
    value_GSH: Tensor,
    out_NLH: Tensor,
    lse_NL: Tensor,
    scaling: float,
    *,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``part_gradients`` of any device.

    ::

        P = exp(scores - lse);   dS = P * (dO V^T - rowsum(dO * O))
        dQ = scaling * dS K;     dK = scaling * dS^T Q;     dV = P^T dO
    """
    num_kv_heads, num_keys, _ = key_GSH.shape
    dtype = query_NLH.dtype
    dquery_NLH = torch.empty_like(query_NLH)
    dkey_GSH = torch.zeros_like(key_GSH, dtype=torch.float32)
    dvalue_GSH = torch.zeros_like(value_GSH, dtype=torch.float32)
    for rows in _slices(query_NLH.shape[1], num_keys):
        scores_GMLS = _scores(query_NLH, key_GSH, rows, scaling, is_causal)
        query, gradient, out = (
            each[:, rows].unflatten(0, (num_kv_heads, -1))
            for each in (query_NLH, gradient_NLH.to(dtype), out_NLH)
        )
        lse_GML = lse_NL[:, rows].unflatten(0, (num_kv_heads, -1))
        weights_GMLS = (scores_GMLS - lse_GML.unsqueeze(-1)).exp_()
        delta_GML1 = (gradient.float() * out.float()).sum(-1, keepdim=True)
        dvalue_GSH += (weights_GMLS.to(dtype).transpose(2, 3) @ gradient).sum(1)
        dweights_GMLS = (gradient @ value_GSH.unsqueeze(1).transpose(2, 3)).float()
        dscores_GMLS = (weights_GMLS * (dweights_GMLS - delta_GML1) * scaling).to(dtype)
        dkey_GSH += (dscores_GMLS.transpose(2, 3) @ query).sum(1)
        dquery_NLH[:, rows] = (dscores_GMLS @ key_GSH.unsqueeze(1)).flatten(0, 1)
    return dquery_NLH, dkey_GSH, dvalue_GSH


def _scores(
    query_NLH: Tensor, key_GSH: Tensor, rows: slice, scaling: float, is_causal: bool
) -> Tensor:
    """Shapes: returns [G, M, L, S] fp32, minus infinity where a key is hidden."""
    query_GMLH = query_NLH[:, rows].unflatten(0, (key_GSH.shape[0], -1))
    scores_GMLS = (query_GMLH @ key_GSH.unsqueeze(1).transpose(2, 3)).float() * scaling
    if is_causal:
        positions_S = torch.arange(key_GSH.shape[1], device=key_GSH.device)
        scores_GMLS.masked_fill_(positions_S > positions_S[rows, None], float("-inf"))
    return scores_GMLS


def _slices(num_queries: int, num_keys: int) -> list[slice]:
    step = max(1, _MAX_SCORES // num_keys)
    return [slice(start, start + step) for start in range(0, num_queries, step)]
