from __future__ import annotations

import io
import random
import tarfile
from collections.abc import AsyncGenerator

import pytest

from cyclora_core.errors import UserError
from cyclora_server.uploads.tar import TarReader
from server.uploads.builders import tar

FILES = {"a": b"1" * 700, "./b": b"", "c": bytes(range(256)) * 20}


async def arriving(data: bytes, max_bytes: int) -> AsyncGenerator[bytes]:
    """The data in pieces of random sizes, some of them empty."""
    rng = random.Random(max_bytes)
    start = 0
    while start < len(data):
        size = rng.randint(0, max_bytes)
        yield data[start : start + size]
        start += size


async def read(data: bytes, max_bytes: int = 4096) -> dict[str, bytes]:
    reader = TarReader(arriving(data, max_bytes))
    found: dict[str, bytes] = {}
    while entry := await reader.next():
        found[entry.name] = b"".join([chunk async for chunk in reader.contents()])
        assert len(found[entry.name]) == entry.num_bytes
    return found


@pytest.mark.parametrize("max_bytes", [1, 511, 100_000])
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_files_are_read_however_they_arrive(max_bytes: int, tar_format: int) -> None:
    data = tar(FILES, format=tar_format)

    assert await read(data, max_bytes) == {n.removeprefix("./"): d for n, d in FILES.items()}


async def test_files_that_are_not_read_are_passed_over() -> None:
    reader = TarReader(arriving(tar(FILES), 100))

    names = [entry.name for _ in FILES if (entry := await reader.next())]

    assert names == ["a", "b", "c"]
    assert await reader.next() is None


@pytest.mark.parametrize("cut", [0, 100, 512, 1000, 3000])
async def test_a_tar_that_ends_too_early_is_refused(cut: int) -> None:
    with pytest.raises(UserError, match="ends too early"):
        await read(tar(FILES)[:cut])


async def test_what_is_no_tar_is_refused() -> None:
    with pytest.raises(UserError, match="is no tar"):
        await read(b"PK\x03\x04" * 300)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_LONGNAME]
)
async def test_links_and_devices_are_refused(kind: bytes) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as opened:
        entry = tarfile.TarInfo("adapter_config.json")
        entry.type, entry.linkname = kind, "/etc/passwd"
        opened.addfile(entry)

    with pytest.raises(UserError, match="neither a plain file nor a folder"):
        await read(target.getvalue())


async def test_a_tar_of_nothing_but_folders_ends() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as opened:
        for _ in range(200):
            entry = tarfile.TarInfo("folder")
            entry.type = tarfile.DIRTYPE
            opened.addfile(entry)

    with pytest.raises(UserError, match="100 entries without a file"):
        await read(target.getvalue())
