"""Dimuon: every lora_A and lora_B moves along the matrix sign of its momentum.

What Tinker publishes of it, and what is our reading: docs/decisions/0012.

Legend: P elements of a flat buffer, M matrices of one shape, S their shorter and L longer side.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from cyclora_workers.adapter import AdapterState

_COARSE = (3.4445, -4.7750, 2.0315)
_NUM_COARSE = 8
"""Each multiplies small singular values by 3.4445, and keeps large ones between 0.6 and 1.3.

Those from 1e-4 of the Frobenius norm up arrive there. What is rounding noise of fp32, 1e-7 of it,
ends below 0.03: a gradient of low rank gives a direction of the same low rank.
"""

_FINE = (15 / 8, -10 / 8, 3 / 8)
_NUM_FINE = 4
"""Each brings a value 1 + e to 1 + O(e^3)."""


def dimuon_update(state: AdapterState, learning_rate: float, beta1: float) -> None:
    """Momentum and weights after one step with the gradient that is in the state.

    ::

        m  = beta1 * m + (1 - beta1) * g
        w -= lr * matrix_sign(m)            for each lora_A and lora_B

    The sign does not depend on the length of m, so its start at zero needs no correction.
    """
    state.first_moment_P.lerp_(state.gradient_P, 1 - beta1)
    moments, weights = (
        [
            _wide(matrix)
            for pair in state.layout.views(flat_P).values()
            for each in pair
            for matrix in (each.unbind(0) if each.ndim == 3 else (each,))
        ]
        for flat_P in (state.first_moment_P, state.master_P)
    )
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, moment_SL in enumerate(moments):
        by_shape[moment_SL.shape].append(index)
    for mine in by_shape.values():
        sign_MSL = matrix_sign(torch.stack([moments[index] for index in mine]))
        for index, sign_SL in zip(mine, sign_MSL, strict=True):
            weights[index].sub_(sign_SL, alpha=learning_rate)


def matrix_sign(x_MSL: Tensor) -> Tensor:
    """The polar factor of each matrix: all singular values become 1, the zeros among them stay.

    ::

        x = U diag(s) V^T  ->  U diag(sign(s)) V^T

    by Newton-Schulz iterations, odd polynomials of x that need matrix products only. So the norm of
    a matrix of full rank becomes sqrt(S), and one of zeros stays one of zeros.

    Shapes:
        x_MSL, result: [M, S, L] fp32 with S <= L.
    Source:
        Jordan et al., 2024, "Muon", for the coarse polynomial; the fine one is the Newton-Schulz
        iteration of fifth order.
    """
    # The largest element first: the squares of very small ones would vanish in the norm.
    largest_M11 = x_MSL.abs().amax((1, 2), keepdim=True)
    x_MSL = x_MSL / largest_M11.clamp_min(torch.finfo(torch.float32).tiny)
    x_MSL = x_MSL / torch.linalg.vector_norm(x_MSL, dim=(1, 2), keepdim=True).clamp_min(1.0)
    for a, b, c in [_COARSE] * _NUM_COARSE + [_FINE] * _NUM_FINE:
        gram_MSS = x_MSL @ x_MSL.mT
        factor_MSS = torch.baddbmm(gram_MSS, gram_MSS, gram_MSS, beta=b, alpha=c)
        x_MSL = torch.baddbmm(x_MSL, factor_MSS, x_MSL, beta=a)
    return x_MSL


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has no more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
