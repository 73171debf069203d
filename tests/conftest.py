"""Fixtures that many folders share: a real Valkey, and a store of one's own in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cyclora_client.up.errors import UpError
from cyclora_client.up.valkey import find_binary
from cyclora_core.clock import ManualClock
from cyclora_core.store import Store

# Triton reads this when it is imported, which other libraries do; `make test-gpu` sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Valkey of this test session; without a binary a skip on a laptop, a failure in CI."""
    try:
        binary = find_binary()
    except UpError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    # A short path of its own: unix socket paths are limited to about 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="cyc-"))
    socket_path = folder / "valkey.sock"
    arguments = ["--port", "0", "--unixsocket", str(socket_path), "--save", "", "--dir", folder]
    with subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL) as process:
        url = f"unix://{socket_path}"
        with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 400)) as client:
            client.ping()
        yield url
        process.terminate()
    shutil.rmtree(folder)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(redis_url: str, clock: ManualClock) -> AsyncIterator[Store]:
    """A store with a key prefix of its own, so that tests cannot see one another."""
    opened = await Store.open(redis_url, f"test-{uuid.uuid4().hex[:12]}", clock)
    yield opened
    await opened.close()


_exit_status = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_exit_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without Python's own shutdown once the SDK has been used; everything is reported.

    Threads of the SDK's HTTP library (Rust) call into Python whenever an answer comes. One that
    does so while CPython before 3.14 shuts down aborts the whole process.
    """
    if "tinker" in sys.modules and _exit_status in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_exit_status])
