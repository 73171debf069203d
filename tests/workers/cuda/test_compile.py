"""The interpreter takes more than the compiler does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper(kernel_device: torch.device, tmp_path: Path) -> None:
    """Without a GPU: Triton brings its compiler and assembler along."""
    program = Path(__file__).with_name("compile_kernels.py")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
