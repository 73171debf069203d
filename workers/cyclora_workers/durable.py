"""Files that are on disk when the call returns, or whose failure is an OSError."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MAX_TRIES = 8


def write_file(path: Path, data: bytes) -> None:
    """Write a file and bring it to disk.

    Raises:
        OSError: the disk is full, or the path cannot be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a new folder and its parents, which somebody may be deleting because they were empty.

    Raises:
        OSError: it exists, or cannot be made.
    """
    for _ in range(_MAX_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return path.mkdir(parents=True)
    path.mkdir(parents=True)
    return None


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to disk: without it a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
