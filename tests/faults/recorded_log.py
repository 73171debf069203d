"""A command log as this version writes it, kept as files for later versions to replay.

``python -m faults.recorded_log FOLDER`` (with ``tests`` on the path) records; a recording is made
once for a version and never again. It holds:

::

    base_model/       the tiny base model, weights included
    redis.json        what the store holds of two models: {key: {type, value}}, bytes in base64
    snapshots/        the snapshot of the second model
    expected.safetensors   the state after replay, the same for both

Both models ran the same operations; the first is replayed from its beginning, the second from a
snapshot in the middle.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio as aioredis
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import LoraConfig, OperationKind, OptimStepBody, PassBody
from cyclora_core.store import Store
from cyclora_workers.base_model import BaseModel
from faults.own_valkey import OwnValkey
from workers.builders import CPU, cross_entropy, policy_body, qwen3
from workers.harness import SESSION_ID, Harness

MODELS = (ids.model_id(SESSION_ID, 0), ids.model_id(SESSION_ID, 1))
BASE_MODEL = "tests/tiny"
_LORA = LoraConfig(4, seed=7)


async def run_first_half(harness: Harness, model: int) -> None:
    await harness.create(model, _LORA)
    await harness.train(cross_entropy([7, 30, 1, 12], seed=1), model)
    await harness.submit(OperationKind.FORWARD, cross_entropy([9], seed=2), model=model)
    await harness.save("kept", model)
    body = policy_body("importance_sampling", [20, 6], seed=3)
    await harness.submit(OperationKind.FORWARD_BACKWARD, body, model=model)


async def run_second_half(harness: Harness, model: int) -> None:
    """Goes on with a gradient accumulated, holds three failures, and ends with a gradient."""
    await harness.train(policy_body("ppo", [11, 5], seed=4), model)
    bad = cross_entropy([4], seed=5)
    bad.data[0].loss_fn_inputs["weights"] = np.full(4, 3e38, np.float32)  # type: ignore[index]
    await harness.train(bad, model)
    await harness.submit(OperationKind.OPTIM_STEP, OptimStepBody(learning_rate=-1.0), model=model)
    unknown = PassBody("no_such_loss", {}, cross_entropy([4], seed=9).data)
    await harness.submit(OperationKind.FORWARD_BACKWARD, unknown, model=model)
    step = OptimStepBody(learning_rate=5e-3, weight_decay=0.1, grad_clip_norm=0.5)
    await harness.submit(
        OperationKind.FORWARD_BACKWARD, cross_entropy([40, 3], seed=6), model=model
    )
    await harness.submit(OperationKind.OPTIM_STEP, step, model=model)
    await harness.submit(OperationKind.FORWARD_BACKWARD, cross_entropy([8], seed=8), model=model)


async def dump(client: aioredis.Redis, prefix: str) -> dict[str, Any]:
    """What the store holds of the models, as it is stored."""
    found: dict[str, Any] = {}
    for model_id in MODELS:
        for pattern in (f"{prefix}:model:{model_id}*", f"{prefix}:body:{model_id}*"):
            async for key in client.scan_iter(match=pattern):
                found[key.decode().removeprefix(prefix)] = await _dump_one(client, key)
    return dict(sorted(found.items()))


async def _dump_one(client: Any, key: bytes) -> dict[str, Any]:
    kind = (await client.type(key)).decode()
    match kind:
        case "string":
            return {"type": kind, "value": b64encode(await client.get(key)).decode()}
        case "hash":
            fields = await client.hgetall(key)
            return {"type": kind, "value": {k.decode(): v.decode() for k, v in fields.items()}}
        case "set":
            return {"type": kind, "value": sorted(v.decode() for v in await client.smembers(key))}
        case "zset":
            rows = await client.zrange(key, 0, -1, withscores=True)
            return {"type": kind, "value": {k.decode(): score for k, score in rows}}
        case "stream":
            rows = await client.xrange(key)
            return {"type": kind, "value": [[i.decode(), f[b"entry"].decode()] for i, f in rows]}
        case _:
            raise TypeError(f"{key!r} is a {kind}")


async def restore(client: Any, prefix: str, recorded: Mapping[str, Any]) -> None:
    """Put a recording into a store."""
    for name, entry in recorded.items():
        key, value = f"{prefix}{name}", entry["value"]
        match entry["type"]:
            case "string":
                await client.set(key, b64decode(value))
            case "hash":
                await client.hset(key, mapping=value)
            case "set":
                await client.sadd(key, *value)
            case "zset":
                await client.zadd(key, value)
            case _:
                for entry_id, text in value:
                    await client.xadd(key, {"entry": text}, id=entry_id)


def expected_state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "expected.safetensors")


def load_base_model(folder: Path) -> BaseModel:
    return BaseModel.load(BASE_MODEL, folder / "base_model", dtype=torch.float32, device=CPU)


async def record(folder: Path, redis_url: str, scratch: Path) -> None:
    qwen3().save_pretrained(folder / "base_model")
    store = await Store.open(redis_url, "recorded", ManualClock())
    harness = Harness(store, ManualClock(), scratch, load_base_model(folder))
    worker: Any = await harness.start_worker()
    for model in (0, 1):
        await run_first_half(harness, model)
    await harness.run_until_idle()
    held = worker._keeper._held[MODELS[1]]
    await worker._keeper._begin_snapshot(MODELS[1], held)
    await worker._keeper.snapshots_written()
    for model in (0, 1):
        await run_second_half(harness, model)
    await harness.run_until_idle()
    states = [worker._engine.export_state(model_id) for model_id in MODELS]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    save_file(states[0], folder / "expected.safetensors")
    async with aioredis.Redis.from_url(redis_url) as client:
        text = json.dumps(await dump(client, "recorded"), indent=1)
    (folder / "redis.json").write_text(text + "\n")
    shutil.copytree(scratch / "snapshots", folder / "snapshots")
    await store.close()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        valkey = OwnValkey(Path(scratch) / "valkey", is_durable=False)
        valkey.start()
        try:
            asyncio.run(record(folder, valkey.url, Path(scratch) / "storage"))
        finally:
            valkey.kill()


if __name__ == "__main__":
    main()
