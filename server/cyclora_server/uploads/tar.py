"""Reading a tar as it arrives: nothing is kept but the part that was asked for."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from cyclora_core.errors import UserError

_BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENSION_BYTES = 64 * 1024
_MAX_SKIPPED = 100
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
"""Precise times and the like, which many writers put before each file."""


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A plain file; what is read next from the reader is its contents."""

    name: str
    num_bytes: int


class TarReader:
    """The plain files of a tar, one after the other; no names or links are followed."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0

    async def next(self) -> TarEntry | None:
        """The next file, past what was not read of the last one; None at the end.

        Raises:
            UserError: the bytes are no tar, or it holds what is neither a file nor a folder.
        """
        for _ in range(_MAX_SKIPPED):
            async for _ in self.contents():
                pass
            await self._exactly(self._padding)
            self._padding = 0
            header = bytes(await self._exactly(_BLOCK))
            if not any(header):
                return None
            entry = _parsed(header)
            self._left, self._padding = entry.size, -entry.size % _BLOCK
            if entry.isreg():
                return TarEntry(entry.name.removeprefix("./"), entry.size)
            is_skipped = entry.type in _EXTENSIONS and entry.size <= _MAX_EXTENSION_BYTES
            if not is_skipped and not (entry.isdir() and entry.size == 0):
                raise UserError(
                    f"the tar's entry {entry.name[:140]!r} is neither a plain file nor a folder"
                )
        raise UserError(f"the tar has {_MAX_SKIPPED} entries without a file in between")

    async def contents(self) -> AsyncGenerator[bytes]:
        """The contents of the current file, in chunks as they arrive.

        Raises:
            UserError: the tar ends before the file does.
        """
        while self._left:
            await self._fill(1)
            chunk = bytes(self._buffer[: self._left])
            del self._buffer[: self._left]
            self._left -= len(chunk)
            yield chunk

    async def _exactly(self, num_bytes: int) -> bytearray:
        await self._fill(num_bytes)
        found = self._buffer[:num_bytes]
        del self._buffer[:num_bytes]
        return found

    async def _fill(self, num_bytes: int) -> None:
        while len(self._buffer) < num_bytes:
            try:
                self._buffer += await anext(self._chunks)
            except StopAsyncIteration:
                raise UserError("the body is no complete tar: it ends too early") from None


def _parsed(header: bytes) -> tarfile.TarInfo:
    try:
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise UserError(f"the body is no tar: {error}") from None
    if entry.size < 0:
        raise UserError("the body is no tar: a size in it is negative")
    return entry
