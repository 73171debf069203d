"""Snapshots: an adapter's complete state in storage, bit for bit, written in one step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load as load_bytes
from safetensors.torch import save
from torch import Tensor

from cyclora_workers import durable

_FILE = "state.safetensors"


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write exported tensors so that the folder holds all of them durably or does not exist.

    Raises:
        OSError: storage does not take it; nothing is left behind.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        # Not safetensors' save_file: that reports a full disk as an error of its own.
        durable.write_file(part / _FILE, save(dict(tensors)))
        durable.sync_folder(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    durable.sync_folder(folder.parent)


def load(folder: Path) -> dict[str, Tensor]:
    """The tensors of a snapshot, all in memory.

    Raises:
        OSError: it is gone, or cannot be read.
    """
    # Not safetensors' load_file: that maps the file, and leaves reading to whoever looks first.
    return load_bytes((folder / _FILE).read_bytes())
