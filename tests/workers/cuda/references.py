"""What the kernels are measured against: slow, obvious, fp32, one row or head after another.

Legend: T packed tokens, N query heads, G key-value heads, H head size, L tokens of a sequence.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def attend_row(
    query_NH: Tensor,
    keys_LGH: Tensor,
    values_LGH: Tensor,
    scaling: float,
    window: int | None,
    sinks_N: Tensor | None = None,
) -> Tensor:
    """One query at the last of L positions; sinks are one more score. Shapes: [N, H] fp32."""
    first = 0 if window is None else max(0, keys_LGH.shape[0] - window)
    heads_per_group = query_NH.shape[0] // keys_LGH.shape[1]
    heads: list[Tensor] = []
    for head, query_H in enumerate(query_NH.float()):
        keys_LH = keys_LGH[first:, head // heads_per_group].float()
        values_LH = values_LGH[first:, head // heads_per_group].float()
        scores_L = keys_LH @ query_H * scaling
        if sinks_N is not None:
            scores_L = torch.cat((scores_L, sinks_N[head, None]))
        heads.append(torch.softmax(scores_L, 0)[: keys_LH.shape[0]] @ values_LH)
    return torch.stack(heads)


def attend_packed(
    query_TNH: Tensor,
    key_TGH: Tensor,
    value_TGH: Tensor,
    bounds: list[int],
    scaling: float,
    window: int | None,
) -> Tensor:
    """Causal attention of each packed sequence; under autograd. Shapes: returns [T, N, H] fp32."""
    rows: list[Tensor] = []
    for start, stop in pairwise(bounds):
        for row in range(start, stop):
            seen = slice(start, row + 1)
            rows.append(attend_row(query_TNH[row], key_TGH[seen], value_TGH[seen], scaling, window))
    return torch.stack(rows)
