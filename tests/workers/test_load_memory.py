"""A base model is loaded shard by shard: there is no moment with two copies of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workers import load_memory


def program(*arguments: str) -> str:
    """What ``load_memory.py`` prints in a process of its own, whose peak is nobody else's."""
    path = [str(Path(load_memory.__file__)), *arguments]
    done = subprocess.run([sys.executable, *path], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    program("bfloat16", str(folder))
    assert len(list(folder.glob("*.safetensors"))) > 5
    return folder


@pytest.mark.parametrize(
    ("base_weights", "most"), [("as_loaded", 1.2), ("int8", 0.85), ("int4", 0.65)]
)
def test_loading_in_bf16_takes_hardly_more_than_what_is_kept(
    folder: Path, base_weights: str, most: float
) -> None:
    """In units of the model in bfloat16; quantised, that much is never in memory."""
    found = json.loads(program("load", str(folder), base_weights))

    assert found["peak"] < most * found["model"]
