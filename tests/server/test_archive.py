from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from cyclora_core.storage import StoredFile
from cyclora_server.archive import archive, num_archive_bytes


def stored(folder: Path, name: str, data: bytes) -> StoredFile:
    (folder / name).write_bytes(data)
    return StoredFile(folder / name, len(data))


@pytest.mark.parametrize("sizes", [[], [0], [1, 512, 513], [700_000, 0]])
async def test_tarfile_reads_what_was_streamed(tmp_path: Path, sizes: list[int]) -> None:
    files = [stored(tmp_path, f"file-{n}", bytes([n + 1]) * size) for n, size in enumerate(sizes)]

    chunks = [chunk async for chunk in archive(files, 1_700_000_000)]

    data = b"".join(chunks)
    assert len(data) == num_archive_bytes(files)
    assert max(len(chunk) for chunk in chunks) <= 256 * 1024
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
        found = {each.name: opened.read() for each in members if (opened := tar.extractfile(each))}
    assert found == {each.name: each.path.read_bytes() for each in files}
    assert {each.mtime for each in members} <= {1_700_000_000}


async def test_a_file_that_got_shorter_ends_the_archive_with_an_error(tmp_path: Path) -> None:
    """The client would otherwise take the padding for a part of the file."""
    file = stored(tmp_path, "short", b"12345")
    file.path.write_bytes(b"123")

    with pytest.raises(OSError, match="2 bytes less"):
        _ = [chunk async for chunk in archive([file], 0)]
