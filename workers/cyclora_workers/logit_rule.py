"""What an architecture does to its logits after the product with the unembedding.

Legend: T packed tokens, V vocabulary, M rows with a gradient, E elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cyclora_workers.activation import stretches

_FACTORS = {"cohere": "logit_scale", "cohere2": "logit_scale", "hyperclovax": "logits_scaling"}
_DIVISORS = {"granite": "logits_scaling"}
"""Where the configuration of a kind of model keeps its factor; all others have none."""


@dataclass(frozen=True, slots=True)
class LogitRule:
    """A constant factor, then a soft cap.

    ::

        logits = factor * (x W^T)                       without a cap
        logits = cap * tanh(factor * (x W^T) / cap)     with one
    """

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """The rule of a configuration; ``check_passes`` compares it with the model's own logits."""
        kind: str = config.model_type
        factor = 1.0
        if kind in _FACTORS:
            factor = float(getattr(config, _FACTORS[kind]))
        elif kind in _DIVISORS:
            factor = 1.0 / getattr(config, _DIVISORS[kind])
        return cls(factor, getattr(config, "final_logit_softcapping", None))

    def apply_(self, logits_TV: Tensor) -> None:
        """Make logits of the product, in place; rows must lie aligned (``rows.py``)."""
        scale = self.factor if self.cap is None else self.factor / self.cap
        if scale != 1.0:
            logits_TV.mul_(scale)
        if self.cap is not None:
            _tanh_(logits_TV)
            logits_TV.mul_(self.cap)

    def backward_(self, dlogits_MV: Tensor, logits_MV: Tensor) -> None:
        """Make the gradient of the product out of that of the logits, in place."""
        if self.cap is not None:
            dlogits_MV.mul_(logits_MV.div(self.cap).square_().neg_().add_(1.0))
        if self.factor != 1.0:
            dlogits_MV.mul_(self.factor)


NO_RULE = LogitRule()


def _tanh_(logits_TV: Tensor) -> None:
    """In stretches over the gaps between rows as well, so no element takes another path."""
    num_rows, width = logits_TV.shape[0], logits_TV.stride(0)
    everything_E = torch.as_strided(logits_TV, (num_rows * width,), (1,))
    for part in stretches(everything_E.shape[0]):
        everything_E[part].tanh_()
