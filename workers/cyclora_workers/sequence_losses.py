"""Losses whose coefficients depend on a datum as a whole, and so are known one pass later.

The head computes the logprobs of all tokens of a datum first, then the coefficients are made here,
then the head goes over the same hidden states again, now with its backward pass.

Legend: N tokens of one datum, K targets per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cyclora_core.losses import RATIO_MASK, Config
from cyclora_workers.losses import Inputs, clipped_surrogate


@dataclass(frozen=True, slots=True, eq=False)
class DatumLoss:
    """The loss of one datum and its derivative by each of the datum's logprobs.

    Shapes:
        loss, metrics: float64 scalars. coefficient: fp32, in the shape of the logprobs.
    """

    loss: Tensor
    coefficient: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


DatumLossFunction = Callable[[Tensor, Inputs, Config], DatumLoss]
"""From a datum's fp32 logprobs, all its inputs in their own shapes, and a full config."""


def gspo(logprobs_N: Tensor, inputs: Inputs, config: Config) -> DatumLoss:
    """Clipped surrogate with one ratio for the whole sequence: GSPO's token-level variant.

    ::

        M     = {t: sequence_ratio_mask[t] != 0}
        ratio = exp(mean over M of (logprobs[t] - sampler_logprobs[t]))
        loss  = -sum_t min(ratio[t] * advantages[t], clip(ratio[t], low, high) * advantages[t])

    where every ``ratio[t]`` has the value of ``ratio``, and the gradient of its own token's logprob
    alone: d ratio[t] / d logprobs[t] = ratio.

    Source:
        Tinker docs, "GSPO"; Zheng et al., 2025, arXiv 2507.18071, section 4.3.
    """
    difference_N = (logprobs_N - inputs["logprobs"]).double()
    ratio = difference_N[inputs[RATIO_MASK] != 0].mean().exp()
    found = clipped_surrogate(torch.full_like(logprobs_N, ratio.item()), inputs, config)
    return DatumLoss(found.loss.double().sum(), found.coefficient)


SEQUENCE_LOSSES: Mapping[str, DatumLossFunction] = {"gspo": gspo}
