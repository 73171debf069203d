"""A ``cyclora up`` of the benchmark's own, durable as shipped or not at all, with an SDK client."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tinker
from tinker import types

BASE_MODEL = "cyclora/tiny-chat"

_NOT_DURABLE = """
from cyclora_client.up import valkey
valkey._SETTINGS["appendonly"] = "no"
from cyclora_client.cli import main
main()
"""


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    is_durable: bool = True,
    settings: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> Generator[Mapping[str, Any]]:
    """Run ``cyclora up``; gives what it reports when it is ready.

    Not durable means without append-only file and without snapshots: a crash loses everything.
    """
    program: Sequence[str] = ["-m", "cyclora_client"] if is_durable else ["-c", _NOT_DURABLE]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CYCLORA_")}
    environment |= settings or {}
    if not is_durable:
        environment["CYCLORA_MAX_REPLAY_S"] = "1e9"
    command = ["up", "--json", "--port", "0", "--data", str(folder), *arguments]
    with (
        (folder.parent / f"{folder.name}.stderr").open("w") as errors,
        subprocess.Popen(
            [sys.executable, *program, *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def new_client(ready: Mapping[str, Any], rank: int = 8) -> tinker.TrainingClient:
    service = tinker.ServiceClient(base_url=ready["base_url"], api_key=ready["api_key"])
    return service.create_lora_training_client(BASE_MODEL, rank=rank, seed=0).result()


def data(num_data: int, num_tokens: int, seed: int = 0) -> list[types.Datum]:
    """Random cross_entropy data."""
    rng = np.random.default_rng(seed)
    made: list[types.Datum] = []
    for _ in range(num_data):
        ids: list[int] = rng.integers(10, 500, num_tokens + 1).tolist()
        inputs: dict[str, Any] = {
            "target_tokens": types.TensorData(data=ids[1:], dtype="int64", shape=[num_tokens]),
            "weights": types.TensorData(
                data=[1.0] * num_tokens, dtype="float32", shape=[num_tokens]
            ),
        }
        made.append(
            types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs)
        )
    return made


def submit_step(client: tinker.TrainingClient, batch: list[types.Datum]) -> Any:
    """A forward_backward and the optim_step behind it; the future of the latter."""
    client.forward_backward(batch, "cross_entropy")
    return client.optim_step(types.AdamParams(learning_rate=1e-4))
