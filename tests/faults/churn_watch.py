"""What a deployment occupies while nothing runs in it: memory, descriptors, files and keys."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import redis

from faults.churn_store import KEYS
from faults.deployment import Deployment

POLL_S = 0.05

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEX = re.compile(r"\b[0-9a-f]{12,64}\b")
_NUMBER = re.compile(r"(?<=[:-])\d+\b")
_EXPIRING = ("future:*", "completions:*", "session_once:*")
"""Kept for a day so that late clients find them."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one process holds."""

    pid: int
    rss_bytes: int
    num_fds: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A deployment at rest."""

    at_s: float
    """Since the first observation."""
    num_runs: int
    """Training runs that have ended by now."""
    processes: Mapping[str, Resources]
    storage_bytes: int
    num_storage_entries: int
    """Files and folders."""
    store_bytes: int
    """What the store says that it uses, its results of the last day left out."""
    num_keys: int


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Keys of one kind."""

    count: int
    num_bytes: int


class Watch:
    """Observes one deployment."""

    def __init__(self, deployment: Deployment, store: redis.Redis) -> None:
        self._deployment = deployment
        self._store = store
        self._started_s = time.monotonic()

    def observe(self, num_runs: int) -> Observation:
        """Everything as it is now; call it when nothing runs."""
        storage_bytes, num_entries = _size(self._deployment.storage)
        memory: Any = self._store.info("memory")
        num_keys: Any = self._store.dbsize()
        return Observation(
            at_s=time.monotonic() - self._started_s,
            num_runs=num_runs,
            processes={
                name: _resources(self._deployment.pid(name)) for name in self._deployment.names
            },
            storage_bytes=storage_bytes,
            num_storage_entries=num_entries,
            store_bytes=memory["used_memory"],
            num_keys=num_keys,
        )

    def leftovers(self, model_ids: Sequence[str]) -> list[str]:
        """Files and keys of models that have ended which time alone will not remove."""
        storage = self._deployment.storage
        places = [
            storage / kind / model_id
            for kind in ("checkpoints", "snapshots")
            for model_id in model_ids
        ]
        found = [str(path.relative_to(storage)) for path in places if path.exists()]
        for model_id in model_ids:
            keys = [
                KEYS.log(model_id),
                KEYS.held(model_id),
                KEYS.failed(model_id),
                KEYS.unlisted_of_model(model_id),
                KEYS.checkpoints_of_model(model_id),
            ]
            found += [key for key in keys if self._store.exists(key)]
        found += [key.decode() for key in self._store.scan_iter(KEYS.body("*"), 1000)]
        return found

    def wait_until_clean(self, model_ids: Sequence[str], deadline_s: float) -> list[str]:
        """Wait until nothing is left of models that have ended; what still is at the deadline."""
        until_s = time.monotonic() + deadline_s
        while (found := self.leftovers(model_ids)) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        return found

    def let_a_day_pass(self) -> int:
        """Expire results as time would; returns how many keys that were."""
        num_expired = 0
        for pattern in _EXPIRING:
            for key in self._store.scan_iter(f"{KEYS.prefix}:{pattern}", 1000):
                lifetime_ms: Any = self._store.pttl(key)
                if lifetime_ms > 0:
                    num_expired += int(bool(self._store.pexpire(key, 1)))
        # The store frees what has expired when somebody looks for it.
        for pattern in _EXPIRING:
            for _ in self._store.scan_iter(f"{KEYS.prefix}:{pattern}", 1000):
                pass
        return num_expired

    def key_groups(self) -> dict[str, KeyGroup]:
        """Number and size of keys by pattern, ids replaced."""
        groups: dict[str, KeyGroup] = {}
        for key in self._store.scan_iter(count=1000):
            num_bytes: Any = self._store.memory_usage(key, samples=0) or 0
            pattern = key_pattern(key.decode())
            old = groups.get(pattern, KeyGroup(0, 0))
            groups[pattern] = KeyGroup(old.count + 1, old.num_bytes + num_bytes)
        return groups


def key_pattern(key: str) -> str:
    """A key's kind: what is left when ids and numbers are replaced."""
    key = key.removeprefix(f"{KEYS.prefix}:")
    return _NUMBER.sub("N", _HEX.sub("HEX", _UUID.sub("ID", key)))


def _resources(pid: int) -> Resources:
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return Resources(pid, pages * _PAGE_BYTES, len(os.listdir(folder / "fd")))


def _size(folder: Path) -> tuple[int, int]:
    """Bytes of all files, and the number of files and folders."""
    entries = list(folder.rglob("*"))
    return sum(path.stat().st_size for path in entries if path.is_file()), len(entries)


def columns(observation: Observation) -> dict[str, float]:
    """One observation as a row of numbers, in units that people read."""
    row: dict[str, float] = {"s": observation.at_s, "runs": observation.num_runs}
    for name, held in observation.processes.items():
        row[f"{name} MB"] = held.rss_bytes / 1e6
    for name, held in observation.processes.items():
        row[f"{name} fds"] = held.num_fds
    row["files"] = observation.num_storage_entries
    row["files MB"] = observation.storage_bytes / 1e6
    row["store MB"] = observation.store_bytes / 1e6
    row["keys"] = observation.num_keys
    assert len(row) == len(fields(Observation)) - 1 + 2 * len(observation.processes)
    return row
