from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cyclora_client.up.errors import UpError
from cyclora_client.up.folder import MAX_SOCKET_PATH_BYTES, DataFolder


def test_the_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.create()

    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700


def test_the_socket_lies_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = DataFolder(Path("/d"))

    with folder.socket_path() as path:
        assert path == Path("/d/valkey.sock")


def test_a_long_data_folder_gets_a_short_private_socket_folder(tmp_path: Path) -> None:
    """A socket path above about 107 bytes cannot be bound at all."""
    folder = DataFolder(tmp_path / ("long" * 30))

    with folder.socket_path() as path:
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


def test_a_long_temporary_folder_is_avoided_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with DataFolder(long).socket_path() as path:
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    assert list(long.iterdir()) == []


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)

    with (
        folder.lock(),
        pytest.raises(UpError, match=rf"in use by another .*process {os.getpid()}"),
        DataFolder(tmp_path).lock(),
    ):
        pass


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with folder.lock():
        pass

    with folder.lock() as descriptor:
        assert os.pread(descriptor, 32, 0) == f"{os.getpid()}\n".encode()


def test_a_store_that_outlives_its_supervisor_keeps_the_folder_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two stores would write one append-only file."""
    monkeypatch.setattr("cyclora_client.up.folder._LEFTOVER_TIMEOUT_S", 0.0)
    folder = DataFolder(tmp_path)
    with folder.lock() as descriptor:
        store = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor]
        )
    with store, pytest.raises(UpError, match="in use"), folder.lock():
        pass

    with folder.lock():
        pass


def test_a_new_start_keeps_one_log_of_the_start_before(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.create()
    for text in ("first", "second"):
        folder.rotate_log("server").write_text(text)

    fresh = folder.rotate_log("server")
    kept = sorted(path.name for path in fresh.parent.iterdir())

    assert kept == ["server.log.1"]
    assert (fresh.parent / "server.log.1").read_text() == "second"


def test_a_file_in_place_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("")

    with pytest.raises(UpError, match="cannot be used"):
        DataFolder(path).create()
