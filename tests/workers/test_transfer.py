"""Copies to and from a CPU, which are none; tests/gpu shows what a GPU makes of them."""

from __future__ import annotations

import torch

from cyclora_workers.transfer import HostCopies, to_device


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor, copies = torch.arange(3.0), HostCopies()

    assert to_device(tensor, torch.device("cpu")) is tensor
    assert copies.of(tensor).data_ptr() == tensor.data_ptr()


def test_waiting_for_no_copies_returns() -> None:
    copies = HostCopies()
    copies.of(torch.zeros(2))

    copies.wait()
    copies.wait()
