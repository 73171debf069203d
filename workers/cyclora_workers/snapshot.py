"""Snapshots: an adapter's complete state in storage, bit for bit, written in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from cyclora_workers.adapter import AdapterState

_FILE = "state.safetensors"


def write(state: AdapterState, folder: Path) -> None:
    """Write a snapshot so that the folder holds either all of it or does not exist."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    file = part / _FILE
    save_file(state.export_tensors(), file)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    directory = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(state: AdapterState, folder: Path) -> None:
    """Fill a state of the same layout from a snapshot."""
    state.import_tensors(load_file(folder / _FILE))
