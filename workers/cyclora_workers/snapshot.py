"""Snapshots: an adapter's complete state in storage, bit for bit, written in one step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from cyclora_workers import durable
from cyclora_workers.adapter import AdapterState

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


def read(state: AdapterState, folder: Path) -> None:
    """Fill a state of the same layout from a snapshot."""
    state.import_tensors(load_file(folder / _FILE))
