"""A base model is loaded shard by shard: there is no moment with two copies of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from workers import load_memory


def program(*arguments: str) -> str:
    """What ``load_memory.py`` prints in a process of its own, whose peak is nobody else's."""
    path = [str(Path(load_memory.__file__)), *arguments]
    done = subprocess.run([sys.executable, *path], capture_output=True, text=True, check=True)
    return done.stdout


def test_loading_in_bf16_takes_hardly_more_than_the_model(tmp_path: Path) -> None:
    program("bfloat16", str(tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) > 5

    found = json.loads(program("load", str(tmp_path)))

    assert found["peak"] < 1.2 * found["model"]
