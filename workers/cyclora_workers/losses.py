"""Token-local loss functions: the loss of each token depends on that token's logprob alone.

So d loss / d logprob, the coefficient, is known as soon as the logprobs are, and no autograd is
needed. All losses are sums over tokens; dividing by a count would make the gradient depend on how
an operation is cut into microbatches.

Legend: N tokens of one datum (or of several, end to end), K targets per token.

Source:
    Tinker docs, "Loss functions"; checked against autograd in tests/workers/test_losses.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cyclora_core.losses import CLIP_HIGH, CLIP_LOW, Config

Inputs = Mapping[str, Tensor]


class TokenLoss(NamedTuple):
    """The loss of each token and its derivative by that token's logprob; both fp32, same shape."""

    loss: Tensor
    coefficient: Tensor


LossFunction = Callable[[Tensor, Inputs, Config], TokenLoss]
"""From fp32 logprobs, the other inputs in the same shape, and a full config."""


def cross_entropy(logprobs: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Weighted negative log-likelihood; loss weights may have any sign.

    ::

        loss = -sum_t weights[t] * logprobs[t]
    """
    weights = inputs["weights"]
    return TokenLoss(-weights * logprobs, -weights)


def importance_sampling(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Policy gradient, corrected for the sampler's distribution.

    ::

        ratio[t] = exp(logprobs[t] - sampler_logprobs[t])
        loss     = -sum_t ratio[t] * advantages[t]
    """
    loss_N = -_ratio(logprobs_N, inputs) * inputs["advantages"]
    return TokenLoss(loss_N, loss_N)


def ppo(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Clipped surrogate; the thresholds bound the ratio itself.

    ::

        loss = -sum_t min(ratio[t] * advantages[t], clip(ratio[t], low, high) * advantages[t])

    A token whose clipped term is the smaller one has coefficient 0.
    """
    return clipped_surrogate(_ratio(logprobs_N, inputs), inputs, config)


def cispo(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Policy gradient weighted by the clipped ratio, which is held constant.

    ::

        loss = -sum_t stop_gradient(clip(ratio[t], low, high)) * logprobs[t] * advantages[t]
    """
    weight_N = _clip(_ratio(logprobs_N, inputs), inputs, config) * inputs["advantages"]
    return TokenLoss(-weight_N * logprobs_N, -weight_N)


def dro(logprobs_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """Policy gradient with a quadratic penalty on leaving the sampler's distribution.

    ::

        difference[t] = logprobs[t] - sampler_logprobs[t]
        loss          = -sum_t (logprobs[t] * advantages[t] - beta / 2 * difference[t]^2)
    """
    beta, advantages_N = config["beta"], inputs["advantages"]
    difference_N = logprobs_N - inputs["logprobs"]
    loss_N = -(logprobs_N * advantages_N - beta / 2 * difference_N.square())
    return TokenLoss(loss_N, beta * difference_N - advantages_N)


def clipped_surrogate(ratio_N: Tensor, inputs: Inputs, config: Config) -> TokenLoss:
    """The pessimistic one of two surrogates, for ratios with d ratio / d logprob = ratio.

    ::

        loss[t]        = -min(ratio[t] * advantages[t], clip(ratio[t], low, high) * advantages[t])
        coefficient[t] = loss[t] where the first is not the larger one, else 0
    """
    advantages_N = inputs["advantages"]
    unclipped_N = ratio_N * advantages_N
    clipped_N = _clip(ratio_N, inputs, config) * advantages_N
    loss_N = -torch.minimum(unclipped_N, clipped_N)
    return TokenLoss(loss_N, torch.where(unclipped_N <= clipped_N, loss_N, 0.0))


def _ratio(logprobs_N: Tensor, inputs: Inputs) -> Tensor:
    return (logprobs_N - inputs["logprobs"]).exp()


def _clip(ratio_N: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """Clip by the datum's own thresholds where it has them, else by the operation's."""
    low_N = inputs.get(CLIP_LOW, torch.full_like(ratio_N, config[CLIP_LOW]))
    high_N = inputs.get(CLIP_HIGH, torch.full_like(ratio_N, config[CLIP_HIGH]))
    return ratio_N.clamp(low_N, high_N)


LOSSES: Mapping[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "cispo": cispo,
    "dro": dro,
}
