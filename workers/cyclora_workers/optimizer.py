"""Optimizer steps on the flat buffers of one adapter; AdamW is here, Dimuon in a file of its own.

Legend: P elements of a flat buffer.
"""

from __future__ import annotations

import math

import torch
from torch.optim.adamw import adamw

from cyclora_core.errors import UserError
from cyclora_core.operations import DimuonStepBody, OptimStepBody
from cyclora_workers.adapter import AdapterState
from cyclora_workers.dimuon import dimuon_update
from cyclora_workers.transfer import to_device

_CLIP_EPS = 1e-6
"""As in ``torch.nn.utils.clip_grad_norm_``."""


@torch.no_grad()
def optimizer_step(state: AdapterState, body: OptimStepBody | DimuonStepBody) -> dict[str, float]:
    """One update by the adapter's optimizer with the gradient clipped by its norm.

    ::

        g = gradient * min(1, grad_clip_norm / (norm(gradient) + 1e-6))   unless it is 0.0

    Without accumulated passes the gradient is zero, which still moves the weights. Afterwards the
    compute copy is up to date and the gradient is zero.

    Returns:
        Metrics: ``grad_norm`` before clipping, and the number of this step.

    Raises:
        UserError: the parameters are another optimizer's or out of range, and nothing was changed;
            or the gradient is not finite, and it was dropped: weights and moments are as they were.
    """
    if body.optimizer_type is not state.optimizer_type:
        raise UserError(
            f"the model was created with {state.optimizer_type}; a step of {body.optimizer_type} "
            "has no meaning for it"
        )
    check_optim_step(body)
    gradient_P = state.gradient_P
    # The host waits for the device here, once per step: whether there is one depends on it.
    grad_norm = float(torch.linalg.vector_norm(gradient_P))
    if not math.isfinite(grad_norm):
        gradient_P.zero_()
        state.num_accumulated_passes = 0
        raise UserError(
            f"the norm of the accumulated gradient is {grad_norm}; no step was taken and the "
            "gradient was dropped: lower the learning rate, or look for extreme advantages"
        )
    if body.grad_clip_norm > 0:
        gradient_P.mul_(min(1.0, body.grad_clip_norm / (grad_norm + _CLIP_EPS)))
    state.num_steps += 1
    if isinstance(body, DimuonStepBody):
        dimuon_update(state, body.learning_rate, body.beta1)
    else:
        _adamw_update(state, body)
    state.gradient_P.zero_()
    state.num_accumulated_passes = 0
    state.refresh_weights()
    return {"grad_norm": grad_norm, "num_steps": float(state.num_steps)}


def _adamw_update(state: AdapterState, body: OptimStepBody) -> None:
    """AdamW with decoupled weight decay, by the fused kernel of ``torch.optim.AdamW``.

    It goes over the flat buffers once, and no element's bits depend on its place in them or on the
    number of threads.

    ::

        w  = w * (1 - lr * weight_decay)
        m  = beta1 * m + (1 - beta1) * g
        v  = beta2 * v + (1 - beta2) * g^2
        w -= lr / (1 - beta1^n) * m / (sqrt(v / (1 - beta2^n)) + eps)        in step n
    """
    adamw(
        [state.master_P],
        [state.gradient_P],
        [state.first_moment_P],
        [state.second_moment_P],
        [],
        # It counts the steps taken before this one.
        [to_device(torch.tensor(state.num_steps - 1.0), state.master_P.device)],
        fused=True,
        amsgrad=False,
        beta1=body.beta1,
        beta2=body.beta2,
        lr=body.learning_rate,
        weight_decay=body.weight_decay,
        eps=body.eps,
        maximize=False,
    )


def check_optim_step(body: OptimStepBody | DimuonStepBody) -> None:
    """Refuse parameters that make no update, or one that ends in NaN.

    Raises:
        UserError: a parameter is out of range.
    """
    accepted = {
        "learning_rate": (body.learning_rate >= 0, "at least 0"),
        "beta1": (0 <= body.beta1 < 1, "from 0 to below 1"),
        "grad_clip_norm": (body.grad_clip_norm >= 0, "at least 0, where 0 means no clipping"),
    }
    if isinstance(body, OptimStepBody):
        accepted |= {
            "beta2": (0 <= body.beta2 < 1, "from 0 to below 1"),
            # With eps 0 every element that never had a gradient becomes 0 / 0.
            "eps": (body.eps > 0, "above 0"),
            "weight_decay": (body.weight_decay >= 0, "at least 0"),
        }
    for name, (is_accepted, bounds) in accepted.items():
        value: float = getattr(body, name)
        if not (is_accepted and math.isfinite(value)):
            raise UserError(f"{name} is {value}; it must be finite and {bounds}")
