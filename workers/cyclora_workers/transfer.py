"""Copies from host memory to the device that do not make the host wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor's copy on ``device``, queued behind the work that is running there.

    A copy from pageable memory holds the host up until it is done; one from pinned memory does
    not, and torch keeps the pinned memory alive until the device has read it. On CPU the tensor
    itself.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
