"""The precision of the base model when nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cyclora_workers.precision import choose_dtype, cpu_has_bf16, hidden_size_of
from workers.builders import qwen3

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "hidden_size", "has_bf16", "expected"),
    [
        (CUDA, 64, False, torch.bfloat16),
        (CPU, 1024, True, torch.bfloat16),
        (CPU, 512, True, torch.bfloat16),
        (CPU, 256, True, torch.float32),
        (CPU, 1024, False, torch.float32),
    ],
)
def test_auto_is_bf16_where_the_hardware_multiplies_it_and_products_count(
    device: torch.device, hidden_size: int, has_bf16: bool, expected: torch.dtype
) -> None:
    assert choose_dtype("auto", device, hidden_size, has_bf16=has_bf16) == expected


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_what_was_asked_for_is_taken(device: torch.device, has_bf16: bool) -> None:
    for wanted, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for hidden_size in (64, 4096):
            assert choose_dtype(wanted, device, hidden_size, has_bf16=has_bf16) == expected


def test_the_cpu_is_asked_as_the_kernel_reports_it() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("no flags of an x86 CPU to compare with")
    flags = set(cpuinfo.read_text().split())

    assert cpu_has_bf16() == bool(flags & {"avx512_bf16", "amx_tile"})


def test_the_hidden_size_is_read_without_loading_the_model(tmp_path: Any) -> None:
    qwen3(hidden_size=48).config.save_pretrained(tmp_path)

    assert hidden_size_of(str(tmp_path)) == 48
