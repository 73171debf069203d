"""A deployment's store as seen from beside it: what was recorded, and what takes how much."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cyclora_client.up import valkey
from cyclora_client.up.specs import KEY_PREFIX
from cyclora_core.store.keys import Keys
from faults.deployment import Deployment

KEYS = Keys(KEY_PREFIX)


@contextmanager
def open_store(deployment: Deployment) -> Generator[redis.Redis]:
    """A connection of the test's own, which waits for a store that is being started."""
    config = (deployment.storage.parent / "valkey.conf").read_text()
    (socket_path,) = re.findall(r'^unixsocket "(.+)"$', config, re.MULTILINE)
    retry = Retry(ConstantBackoff(0.05), 200)
    with redis.Redis.from_url(valkey.redis_url(Path(socket_path)), retry=retry) as client:
        yield client


def logged_seq_ids(store: redis.Redis, model_id: str) -> list[int]:
    """The seq_ids in a model's command log, in order."""
    rows: Any = store.xrange(KEYS.log(model_id))
    return [int(entry_id.decode().partition("-")[0]) for entry_id, _ in rows]
