from __future__ import annotations

import shutil
from pathlib import Path

from cyclora_core import disk

MIB = 1024**2


def test_a_folder_that_is_not_there_yet_has_its_parents_disk(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free

    assert abs(disk.free_bytes(tmp_path / "not" / "yet") - free) < 512 * MIB
