"""What of a checkpoint lies in storage, looked at from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import load

from contract.conftest import Running


def revisions_of(up: Running, path: str) -> list[Path]:
    """Folders of the checkpoint's revisions; there is one when nothing is being written."""
    run, kind, name = path.removeprefix("tinker://").split("/")
    return list((up.folder / "storage" / "checkpoints" / run / kind / name).iterdir())


def files_of(up: Running, path: str) -> dict[str, bytes]:
    """Contents of the checkpoint's files by name."""
    [folder] = revisions_of(up, path)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def moments_of(up: Running, path: str) -> dict[str, Any]:
    """The optimizer's arrays of a training checkpoint by name."""
    return load(files_of(up, path)["optimizer.safetensors"])
