"""Copies between host memory and the device that make the host wait as seldom as possible."""

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


class HostCopies:
    """Copies to host memory, for all of which the host waits once.

    Every wait drains the device's queue, which then stands idle until the host has queued more: so
    whatever a step or microbatch has found is fetched together, at its end.
    """

    def __init__(self) -> None:
        self._waited_for: torch.device | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The copy, whose content is there once ``wait`` has returned; on CPU the tensor itself.

        It lies in pinned memory, which is scarce: what is to be kept for long is copied again.
        """
        if tensor.device.type != "cuda":
            return tensor.cpu()
        self._waited_for = tensor.device
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Hold the host up until all copies are done."""
        if self._waited_for is not None:
            torch.cuda.current_stream(self._waited_for).synchronize()
            self._waited_for = None
