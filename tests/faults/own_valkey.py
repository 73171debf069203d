"""A Valkey process of one test's own, which may be starved, killed and started again."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cyclora_client.up import valkey

_READY_TRIES = 400
_READY_PAUSE_S = 0.05
_STOP_TIMEOUT_S = 20.0


class OwnValkey:
    """Configured as ``cyclora up`` does it, except for what a test changes.

    Without durability (``is_durable`` false) nothing is written to disk.
    """

    def __init__(self, folder: Path, *, is_durable: bool = True) -> None:
        self.data = folder / "valkey"
        self.data.mkdir(parents=True, exist_ok=True)
        self.log_file = folder / "valkey.log"
        self._config = folder / "valkey.conf"
        self._is_durable = is_durable
        # A short path of its own: unix socket paths are limited to about 107 bytes.
        self._socket_folder = Path(tempfile.mkdtemp(prefix="cyc-"))
        self._socket = self._socket_folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return valkey.redis_url(self._socket)

    def start(self, *, max_file_bytes: int | None = None) -> None:
        """Start and wait until it has read its files; ``max_file_bytes`` acts as a full disk."""
        valkey.write_config(self._config, self.data, self._socket)
        arguments = [] if self._is_durable else ["--appendonly", "no"]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [valkey.find_binary(), str(self._config), *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C"},
                # Keeps SIGXFSZ ignored, as Python has it: a file that may not grow is then an
                # error of write(), as on a full disk, and no signal.
                restore_signals=False,
            )
        retry = Retry(ConstantBackoff(_READY_PAUSE_S), _READY_TRIES)
        with redis.Redis.from_url(self.url, retry=retry) as client:
            client.ping()
        if max_file_bytes is not None:
            # From outside: the process must first be able to write what it starts with.
            limits = (max_file_bytes, resource.RLIM_INFINITY)
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, limits)

    @property
    def append_only_file(self) -> Path:
        """The file that the newest writes are appended to."""
        return max((self.data / "appendonlydir").glob("*.incr.aof"))

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def wait_until_dead(self) -> None:
        assert self._process is not None
        self._process.wait(_STOP_TIMEOUT_S)
        self._process = None

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self.wait_until_dead()

    @contextmanager
    def client(self) -> Generator[redis.Redis]:
        with redis.Redis.from_url(self.url) as client:
            yield client

    def set_max_memory(self, num_bytes: int) -> None:
        with self.client() as client:
            client.config_set("maxmemory", num_bytes)

    def dump(self) -> dict[bytes, Any]:
        """Every key with all that it holds."""
        with self.client() as client:
            readers: dict[Any, Callable[[Any], Any]] = {
                b"string": client.get,
                b"hash": client.hgetall,
                b"set": client.smembers,
                b"list": lambda key: client.lrange(key, 0, -1),
                b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
                b"stream": client.xrange,
            }
            keys: list[Any] = sorted(client.keys("*"))
            return {key: readers[client.type(key)](key) for key in keys}

    def __enter__(self) -> OwnValkey:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._socket_folder)
