"""The data folder of one ``cyclora up``: where everything lies, and who may use it.

::

    appendonlydir/      the store's append-only file
    storage/            checkpoints, snapshots, tokenizer files
    logs/NAME.log       what each process wrote since the last start; NAME.log.1 before that
    ready/NAME.json     written by each process once it is ready
    credentials.json    the API keys of this folder
    valkey.conf, up.lock, valkey.sock
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cyclora_client.up.errors import UpError

MAX_SOCKET_PATH_BYTES = 100
"""Linux takes 107 bytes, macOS 103; a longer path cannot be bound at all."""

_LEFTOVER_TIMEOUT_S = 10.0


class DataFolder:
    """Paths inside one data folder; nothing is created before ``create``."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.storage = self.root / "storage"
        self.credentials_file = self.root / "credentials.json"
        self.valkey_config = self.root / "valkey.conf"
        self._logs = self.root / "logs"
        self._ready = self.root / "ready"
        self._lock_file = self.root / "up.lock"

    def create(self) -> None:
        """Make the folders, closed to other users: the keys and everybody's data lie here."""
        try:
            for path in (self.root, self.storage, self._logs, self._ready):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UpError(f"data folder {str(self.root)!r} cannot be used: {error}") from error

    def log_file(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def ready_file(self, name: str) -> Path:
        return self._ready / f"{name}.json"

    def rotate_log(self, name: str) -> Path:
        """Begin a new log and keep the one before; restarts within one ``up`` append."""
        path = self.log_file(name)
        if path.exists() and path.stat().st_size > 0:
            path.replace(path.with_name(f"{path.name}.1"))
        return path

    @contextmanager
    def lock(self) -> Generator[int]:
        """Hold the folder, and give the lock's file descriptor for the store to inherit.

        The lock belongs to the open file, so a store that outlives a killed supervisor still holds
        it: two stores never write one append-only file. Such a store is on its way out and is
        waited for; a living supervisor is an error at once.

        Raises:
            UpError: another ``cyclora up`` uses this folder.
        """
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            give_up_mono_s = time.monotonic() + _LEFTOVER_TIMEOUT_S
            while not _try_lock(descriptor):
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                if _is_alive(holder) or time.monotonic() > give_up_mono_s:
                    raise UpError(
                        f"data folder {str(self.root)!r} is in use by another `cyclora up` "
                        f"(process {holder or 'unknown'}); stop it or choose another --data"
                    )
                time.sleep(0.05)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def socket_path(self) -> Generator[Path]:
        """A path for the store's socket: here, or in a private short folder if this is too long."""
        path = self.root / "valkey.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            yield path
            return
        short = Path(tempfile.mkdtemp(prefix="cyclora-"))
        if len(os.fsencode(short / path.name)) > MAX_SOCKET_PATH_BYTES:
            short.rmdir()
            short = Path(tempfile.mkdtemp(prefix="cyclora-", dir="/tmp"))
        try:
            yield short / path.name
        finally:
            shutil.rmtree(short, ignore_errors=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
