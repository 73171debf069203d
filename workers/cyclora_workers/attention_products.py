"""Gradients of attention in bf16 on a CPU, as matrix products.

torch's own kernel works in fp32, or casts every block of bf16 again and again; the processor
multiplies bf16 several times as fast (docs/decisions/0053-attention-products.md).

Legend: N query heads, G key-value heads, M query heads per key-value head, L queries, S keys,
H head size, E elements of a row with what is subtracted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cyclora_workers.context import align_rows

_NUM_TERMS = 3
"""This many numbers of 8 bits add up to one of 24."""

_TERM_COLUMNS = 8
"""What a row is longer by; it then still begins at a multiple of 16 bytes."""

_MAX_QUERIES = 256
"""Queries that are handled at a time; causal ones leave out the keys behind them."""

_MAX_SCORES = 1 << 21
"""Scores of a head that exist at a time; with more than 8,192 keys there are fewer queries."""


_MIN_SCORES = 96 * 96
"""From so many scores of a head on, these products are faster than torch's kernel in fp32."""


def takes_products(dtype: torch.dtype, num_queries: int, num_keys: int) -> bool:
    """Whether gradients of so many queries by so many keys, on a CPU, are to be computed here.

    Depends on one sequence alone.
    """
    return dtype == torch.bfloat16 and num_queries * num_keys >= _MIN_SCORES


def product_gradients(
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
    """Gradients of bf16 queries, keys and values.

    ::

        P = exp(scaling * (Q K^T - lse / scaling));    dS = P * (dO V^T - rowsum(dO * O))
        dQ = scaling * dS K;    dK = scaling * dS^T Q;    dV = P^T dO

    Both differences are formed inside the product, which sums in fp32, so what is rounded to bf16
    is the difference: scores of 8 would be off by up to 0.03, and their probabilities by as much.

    Rows are padded to a multiple of 32 with zeros, which add nothing: a product is compiled for
    its shape, and lengths are new with every step.

    ``gradient_NLH`` is d loss / d out. With ``is_causal``, L = S and each query is at the key of
    its index. Where many keys share the weight, the difference is about the logarithm of their
    number, and a weight is as many times less precise than bf16.

    Shapes:
        lse_NL: log-sum-exp of the scores of each query, fp32; everything else in bf16. Returns
        [N, L, H], [G, S, H] and [G, S, H]; the latter two in fp32 where there was a sum to form.
    """
    (num_kv_heads, num_keys, head_size), num_queries = key_GSH.shape, query_NLH.shape[1]
    delta_NL = (gradient_NLH.float() * out_NLH.float()).sum(-1)
    query_GMLE = _subtracting(query_NLH, num_kv_heads, lse_NL / scaling)
    gradient_GMLE = _subtracting(gradient_NLH, num_kv_heads, delta_NL)
    key_GSE, value_GSE = _with_ones(key_GSH), _with_ones(value_GSH)

    dquery_GMLH = torch.empty_like(query_GMLE[..., :head_size])
    sums: list[Tensor] = []
    for rows in _row_slices(query_GMLE.shape[2], key_GSE.shape[1]):
        keys = slice(0, rows.stop if is_causal else key_GSE.shape[1])
        query_GRE, gradient_GRE = (e[:, :, rows].flatten(1, 2) for e in (query_GMLE, gradient_GMLE))
        weights_GRS = torch.bmm(query_GRE, key_GSE[:, keys].transpose(1, 2)).mul_(scaling).exp_()
        if is_causal:
            by_head = weights_GRS.unflatten(1, (-1, rows.stop - rows.start))
            by_head[..., rows].tril_()
        dscores_GRS = torch.bmm(gradient_GRE, value_GSE[:, keys].transpose(1, 2)).mul_(weights_GRS)
        dquery_GRH = torch.bmm(dscores_GRS, key_GSE[:, keys, :head_size])
        dquery_GMLH[:, :, rows] = dquery_GRH.unflatten(1, (-1, rows.stop - rows.start))
        terms = [
            torch.bmm(dscores_GRS.transpose(1, 2), query_GRE[..., :head_size]),
            torch.bmm(weights_GRS.transpose(1, 2), gradient_GRE[..., :head_size]),
        ]
        # The last rows come first, so the first terms are those with all keys.
        sums = [_added(*pair) for pair in zip(sums, terms, strict=True)] if sums else terms
    dkey_GSH, dvalue_GSH = sums
    return (
        dquery_GMLH.mul_(scaling).flatten(0, 1)[:, :num_queries],
        dkey_GSH.mul_(scaling)[:, :num_keys],
        dvalue_GSH[:, :num_keys],
    )


def _subtracting(heads_NLH: Tensor, num_kv_heads: int, number_NL: Tensor) -> Tensor:
    """Rows whose product with a row ``_with_ones`` is less by the row's number.

    Shapes:
        Returns [G, M, L padded, E].
    """
    heads_GMLH = heads_NLH.unflatten(0, (num_kv_heads, -1))
    num_rows, head_size = heads_NLH.shape[1:]
    padded = (*heads_GMLH.shape[:2], align_rows(num_rows), head_size + _TERM_COLUMNS)
    rows_GMLE = heads_NLH.new_zeros(padded)
    rows_GMLE[:, :, :num_rows, :head_size] = heads_GMLH
    rest_GML = -number_NL.unflatten(0, (num_kv_heads, -1))
    for column in range(head_size, head_size + _NUM_TERMS):
        term_GML = rest_GML.to(heads_NLH.dtype)
        rows_GMLE[:, :, :num_rows, column] = term_GML
        rest_GML = rest_GML - term_GML
    return rows_GMLE


def _with_ones(heads_GSH: Tensor) -> Tensor:
    """Shapes: returns [G, S padded, E], zeros in the rows that were added."""
    num_heads, num_rows, head_size = heads_GSH.shape
    rows_GSE = heads_GSH.new_zeros(num_heads, align_rows(num_rows), head_size + _TERM_COLUMNS)
    rows_GSE[:, :num_rows, :head_size] = heads_GSH
    rows_GSE[:, :num_rows, head_size : head_size + _NUM_TERMS] = 1.0
    return rows_GSE


def _row_slices(num_queries: int, num_keys: int) -> list[slice]:
    """The last queries first."""
    most = min(_MAX_QUERIES, max(1, _MAX_SCORES // num_keys))
    step = align_rows(most)
    starts = range(0, num_queries, step)
    return [slice(start, min(start + step, num_queries)) for start in reversed(starts)]


def _added(sum_GSH: Tensor, term_GKH: Tensor) -> Tensor:
    """A sum for all keys, in fp32, and a term for the first ones."""
    sum_GSH = sum_GSH.float()
    sum_GSH[:, : term_GKH.shape[1]] += term_GKH
    return sum_GSH
