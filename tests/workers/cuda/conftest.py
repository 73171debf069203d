"""Kernels run in Triton's interpreter, plain numpy; `make test-gpu` runs them on the GPU."""

from __future__ import annotations

import os

import pytest
import torch

IS_INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where Triton's kernels run; without Triton a skip on a laptop, a failure in CI."""
    if not os.environ.get("CI"):
        pytest.importorskip("triton")
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def kernel_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What kernels compute in; the interpreter has no bfloat16, which is left to a GPU."""
    dtype: torch.dtype = request.param
    if dtype is torch.bfloat16 and IS_INTERPRETED:
        pytest.skip("Triton's interpreter has no bfloat16")
    return dtype
