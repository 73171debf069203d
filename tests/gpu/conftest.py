"""Base models on the GPU and, from the same files, on the CPU in fp32."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from cyclora_workers.base_model import BaseModel
from workers.builders import ARCHITECTURES


@dataclass(frozen=True)
class Pair:
    """One model twice."""

    gpu: BaseModel
    cpu: BaseModel


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def pair(
    request: pytest.FixtureRequest, cuda: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    folder = tmp_path_factory.mktemp("base")
    ARCHITECTURES[request.param]().save_pretrained(folder)
    return Pair(
        BaseModel.load("tests/tiny", folder, dtype=torch.bfloat16, device=cuda),
        BaseModel.load("tests/tiny", folder, dtype=torch.float32, device=torch.device("cpu")),
    )
