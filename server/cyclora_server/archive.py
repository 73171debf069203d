"""Files as one tar, made while it is sent: it takes neither memory nor disk, whatever its size."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncGenerator, Sequence

import anyio

from cyclora_core.storage import StoredFile

_CHUNK_BYTES = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


def num_archive_bytes(files: Sequence[StoredFile]) -> int:
    """Size of the tar of these files."""
    return sum(_BLOCK + file.num_bytes + _padding(file) for file in files) + len(_END)


async def archive(files: Sequence[StoredFile], modified_at_s: int) -> AsyncGenerator[bytes]:
    """The tar of these files, each by its name alone, in bounded chunks.

    Raises:
        OSError: a file is gone, or shorter than it was.
    """
    for file in files:
        entry = tarfile.TarInfo(file.name)
        entry.size, entry.mtime = file.num_bytes, modified_at_s
        yield entry.tobuf(tarfile.GNU_FORMAT)
        left = file.num_bytes
        async with await anyio.open_file(file.path, "rb") as opened:
            while left:
                chunk = await opened.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise OSError(f"{file.path} has {left} bytes less than it had")
                left -= len(chunk)
                yield chunk
        yield bytes(_padding(file))
    yield _END


def _padding(file: StoredFile) -> int:
    return -file.num_bytes % _BLOCK
