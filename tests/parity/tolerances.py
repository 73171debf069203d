"""How far two ways of computing the same thing may be apart, per dtype; the one table of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """As ``torch.testing.assert_close`` takes it."""

    rtol: float
    atol: float


FORWARD = {
    torch.float32: Tolerance(1e-4, 2e-5),
    torch.float16: Tolerance(2e-2, 2e-2),
    torch.bfloat16: Tolerance(2e-2, 2e-1),
}
"""Hidden states, logits, logprobs and losses, against another implementation in fp32."""

EXPORT = {torch.float32: Tolerance(1e-5, 1e-5)}
"""Logprobs of an adapter that left or came in as files: nothing but the order of sums differs."""

GRADIENT = {
    torch.float32: Tolerance(1e-3, 5e-5),
    torch.float16: Tolerance(5e-2, 5e-2),
    torch.bfloat16: Tolerance(5e-2, 5e-1),
}
"""Gradients of tests' tiny models, whose elements are of order 1."""

LOSS = {torch.float32: Tolerance(1e-5, 1e-5)}
"""Loss values, logprobs and gradients of one loss function; gradients in units of the largest."""

AFTER_STEPS = {torch.float32: Tolerance(1e-3, 2e-4)}
"""Weights after several AdamW steps. Adam divides by the gradient's own size, so an element whose
gradient is near zero amplifies a difference of rounding up to the learning rate."""


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> None:
    """Assert that two tensors agree within the tolerance, whatever their dtypes."""
    torch.testing.assert_close(
        actual.float(), expected.float(), rtol=tolerance.rtol, atol=tolerance.atol
    )
