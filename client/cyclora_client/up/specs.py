"""The processes of one machine: their commands and their settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cyclora_client.up import valkey
from cyclora_client.up.children import ProcessSpec
from cyclora_client.up.folder import DataFolder
from cyclora_client.up.options import UpOptions
from cyclora_client.up.probes import ReadyFile

KEY_PREFIX = "cyclora"

SHORT_WAITS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}
"""How torch's threads wait for each other: some 20 microseconds awake, then asleep.

Always awake, they take the cores from the server and the store: measured 10 to 20 times slower
decode steps on a busy machine of two cores. Always asleep, waking them costs every small operation
80 microseconds (docs/decisions/0051-small-products.md). ``cyclora up`` leaves what it finds set."""


def store_spec(
    folder: DataFolder,
    socket_path: Path,
    lock_descriptor: int,
    max_memory_bytes: int | None = None,
) -> ProcessSpec:
    valkey.write_config(folder.valkey_config, folder.root, socket_path, max_memory_bytes)
    return ProcessSpec(
        name="valkey",
        command=[valkey.find_binary(), str(folder.valkey_config)],
        probe=valkey.Ping(socket_path),
        log_file=folder.rotate_log("valkey"),
        environment={"LC_ALL": "C"},  # an unknown locale ends Valkey at its start
        inherited_descriptors=[lock_descriptor],
    )


def server_spec(options: UpOptions, folder: DataFolder, redis_url: str) -> ProcessSpec:
    settings = {"CYCLORA_HOST": options.host, "CYCLORA_PORT": str(options.port)}
    settings |= options.metrics_settings(0)
    return _spec("server", options.commands.server, folder, redis_url, settings)


def scheduler_spec(options: UpOptions, folder: DataFolder, redis_url: str) -> ProcessSpec:
    settings = {"CYCLORA_SCHEDULER_NAME": "scheduler", **options.metrics_settings(1)}
    return _spec("scheduler", options.commands.scheduler, folder, redis_url, settings)


def worker_specs(options: UpOptions, folder: DataFolder, redis_url: str) -> list[ProcessSpec]:
    """One worker per base model."""
    shared = {name: os.environ.get(name, value) for name, value in SHORT_WAITS.items()}
    if options.dtype is not None:
        shared["CYCLORA_DTYPE"] = options.dtype
    if options.base_weights is not None:
        shared["CYCLORA_BASE_WEIGHTS"] = options.base_weights
    if options.num_threads is not None:
        shared["CYCLORA_NUM_THREADS"] = str(options.num_threads)
    specs: list[ProcessSpec] = []
    for index, model in enumerate(options.base_models):
        settings = {
            **shared,
            "CYCLORA_BASE_MODEL": model.name,
            "CYCLORA_BASE_MODEL_PATH": model.path,
            "CYCLORA_WORKER_NAME": f"worker-{index}",
            **options.metrics_settings(2 + index),
        }
        command = options.commands.worker
        specs.append(_spec(f"worker-{index}", command, folder, redis_url, settings))
    return specs


def _spec(
    name: str,
    command: Sequence[str],
    folder: DataFolder,
    redis_url: str,
    settings: dict[str, str],
) -> ProcessSpec:
    ready_file = folder.ready_file(name)
    return ProcessSpec(
        name=name,
        command=command,
        probe=ReadyFile(ready_file),
        log_file=folder.rotate_log(name),
        environment={
            "CYCLORA_REDIS_URL": redis_url,
            "CYCLORA_KEY_PREFIX": KEY_PREFIX,
            "CYCLORA_STORAGE_URL": str(folder.storage),
            "CYCLORA_READY_FILE": str(ready_file),
            **settings,
        },
    )
