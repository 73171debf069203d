"""Room on the disk behind a folder."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_bytes(path: Path) -> int:
    """Bytes this process may still write under ``path``; blocks, and longer on a network disk.

    A folder that does not exist yet lies on the disk of its nearest parent that does.
    """
    absolute = path.absolute()
    existing = next(each for each in (absolute, *absolute.parents) if each.exists())
    return shutil.disk_usage(existing).free
