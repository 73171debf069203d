"""What one server process and one worker do under many tenants that train and sample.

Each tenant has a key, a model and a sampling session of its own and sends its next step or sample
as soon as the last one is answered. The client of all of them is one process on the same machine,
which takes a part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_http import BareTenant, random_datum
from deployed import BASE_MODEL, running
from engine_process import EngineProcess
from machine import Aim, aims_table, caption, table

from cyclora_client.admin import AdminClient
from cyclora_client.up import valkey
from cyclora_client.up.folder import DataFolder
from cyclora_client.up.specs import KEY_PREFIX
from cyclora_core.operations import Datum, PassBody
from cyclora_core.store import Store
from cyclora_workers import tiny_chat

NUM_DATA, NUM_TOKENS = 2, 32
MAX_TOKENS = 16
TRAINING_FRACTION = 0.6
LONE_TOKENS = 16
LORA_RANK = 8
HEADER = ["tenants", "requests/s", "operations/s", "tokens/s trained", "sampled", "errors"]
LATENCY_HEADER = ["tenants", "submit p50", "p99", "wake-up p50", "p99", "step p50", "p99"]
MEMORY_HEADER = ["tenants", "server", "scheduler", "worker", "store"]


@dataclass
class Latencies:
    """In seconds."""

    submit: list[float] = field(default_factory=list[float])
    """From sending an operation to its promise."""
    wake_up: list[float] = field(default_factory=list[float])
    """From the store's announcement that it is settled to the answer of the poll held for it."""
    step: list[float] = field(default_factory=list[float])
    """From sending a forward_backward and its optim_step to the answer for the latter."""


@dataclass
class Load:
    """What all tenants did."""

    latencies: Latencies = field(default_factory=Latencies)
    settled_s: dict[str, float] = field(default_factory=dict[str, float])
    """When operations were announced, while somebody waits for them."""
    num_operations: int = 0
    num_trained: int = 0
    num_sampled: int = 0
    errors: list[str] = field(default_factory=list[str])


class Tenant:
    """One client."""

    def __init__(self, http: BareTenant, load: Load, seed: int) -> None:
        self._http = http
        self._load = load
        self._rng = random.Random(seed)
        self._model_id = self._sampler_id = ""
        self._seq_id = self._num_samples = 0

    async def begin(self) -> None:
        """A session, a model, and weights of it to sample from."""
        http = self._http
        session = await http.post("create_session", {"tags": []})
        creating = {
            "session_id": session["session_id"],
            "model_seq_id": 0,
            "base_model": BASE_MODEL,
            "lora_config": {"rank": LORA_RANK, "seed": 0},
        }
        self._model_id = (await http.run("create_model", creating))["model_id"]
        saving = self._numbered(sampling_session_seq_id=1)
        saved = await http.run("save_weights_for_sampler", saving)
        self._sampler_id = saved["sampling_session_id"]

    async def work(self, until_s: float) -> None:
        """One thing after the other."""
        while time.perf_counter() < until_s:
            try:
                if self._rng.random() < TRAINING_FRACTION:
                    await self.step()
                else:
                    await self._sample()
            except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
                self._load.errors.append(str(error)[:200])

    async def step(self, num_data: int = NUM_DATA, num_tokens: int = NUM_TOKENS) -> None:
        """A forward_backward and its optim_step, the latter awaited."""
        began_s = time.perf_counter()
        data = [random_datum(self._rng, num_tokens) for _ in range(num_data)]
        given = {"data": data, "loss_fn": "cross_entropy"}
        await self._submit("forward_backward", self._numbered(forward_backward_input=given))
        stepping = self._numbered(adam_params={"learning_rate": 1e-4})
        await self._outcome(await self._submit("optim_step", stepping))
        self._load.latencies.step.append(time.perf_counter() - began_s)
        self._load.num_operations += 2
        self._load.num_trained += num_data * num_tokens

    async def _sample(self) -> None:
        tokens = [self._rng.randrange(10, 500) for _ in range(NUM_TOKENS)]
        body = {
            "sampling_session_id": self._sampler_id,
            "seq_id": self._num_samples,
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
            "sampling_params": {"max_tokens": MAX_TOKENS, "seed": self._num_samples, "stop": []},
        }
        self._num_samples += 1
        answer = await self._outcome(await self._submit("asample", body))
        self._load.num_operations += 1
        self._load.num_sampled += sum(len(each["tokens"]) for each in answer["sequences"])

    async def _submit(self, route: str, body: Mapping[str, Any]) -> str:
        began_s = time.perf_counter()
        answer = await self._http.post(route, body)
        self._load.latencies.submit.append(time.perf_counter() - began_s)
        return answer["request_id"]

    async def _outcome(self, request_id: str) -> dict[str, Any]:
        self._load.settled_s[request_id] = 0.0
        answer = await self._http.outcome(request_id)
        # One that was settled before its poll came was announced to nobody.
        if settled_s := self._load.settled_s.pop(request_id):
            self._load.latencies.wake_up.append(time.perf_counter() - settled_s)
        return answer

    def _numbered(self, **rest: Any) -> dict[str, Any]:
        self._seq_id += 1
        return {"model_id": self._model_id, "seq_id": self._seq_id, **rest}


async def listen(store: Store, load: Load) -> None:
    """Note when operations are settled, until cancelled."""
    async with store.futures.subscribe() as announcements:
        async for request_id in announcements:
            if request_id in load.settled_s:
                load.settled_s[request_id] = time.perf_counter()


@dataclass(frozen=True, slots=True)
class Measured:
    """One number of tenants."""

    load: Load
    seconds: float
    num_requests: int
    num_refused: int
    memory_mib: Sequence[float]

    def rates(self) -> list[str]:
        counts = (
            self.num_requests,
            self.load.num_operations,
            self.load.num_trained,
            self.load.num_sampled,
        )
        return [*(f"{n / self.seconds:,.0f}" for n in counts), str(len(self.load.errors))]

    def latencies(self) -> list[str]:
        found = self.load.latencies
        return [
            f"{1000 * part:,.1f}"
            for values in (found.submit, found.wake_up, found.step)
            for part in (statistics.median(values), percentile(values, 0.99))
        ]


def percentile(values: Sequence[float], fraction: float) -> float:
    """The least value that is not exceeded by ``fraction`` of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(fraction * len(ordered)))]


async def measure(
    ready: Mapping[str, Any], store_url: str, keys: Sequence[str], s: float
) -> Measured:
    """Let one tenant for each key work for some seconds."""
    load = Load()
    store = await Store.open(store_url, KEY_PREFIX)
    listening = asyncio.create_task(listen(store, load))
    clients = [await BareTenant(ready["base_url"], key).__aenter__() for key in keys]
    tenants = [Tenant(client, load, seed) for seed, client in enumerate(clients)]
    await asyncio.gather(*(tenant.begin() for tenant in tenants))
    num_before = sum(client.num_requests for client in clients)
    began_s = time.perf_counter()
    await asyncio.gather(*(tenant.work(began_s + s) for tenant in tenants))
    seconds = time.perf_counter() - began_s
    memory = [_resident_mib(pid) for pid in _pids(ready)]
    for client in clients:
        await client.__aexit__(None, None, None)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await store.close()
    num_requests = sum(client.num_requests for client in clients) - num_before
    return Measured(load, seconds, num_requests, sum(c.num_refused for c in clients), memory)


async def measure_lone(
    ready: Mapping[str, Any], key: str, engine: EngineProcess, num_rounds: int
) -> tuple[float, float]:
    """Median seconds of a lone tiny step, awaited: over HTTP, and by the engine alone."""
    ids = np.arange(10, LONE_TOKENS + 11, dtype=np.int32)
    inputs = {
        "target_tokens": ids[1:].astype(np.int64),
        "weights": np.ones(LONE_TOKENS, np.float32),
    }
    compute = engine.steps([PassBody("cross_entropy", {}, [Datum(ids[:-1], inputs)])], 1)
    load, engine_s = Load(), list[float]()
    async with BareTenant(ready["base_url"], key) as client:
        tenant = Tenant(client, load, 0)
        await tenant.begin()
        for _ in range(num_rounds):
            await tenant.step(1, LONE_TOKENS)
            began_s = time.perf_counter()
            compute()
            engine_s.append(time.perf_counter() - began_s)
    return statistics.median(load.latencies.step), statistics.median(engine_s)


def _pids(ready: Mapping[str, Any]) -> list[int]:
    pids = ready["pids"]
    return [pids["server"], pids["scheduler"], pids["workers"][0], pids["redis"]]


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no resident memory")


def _new_keys(ready: Mapping[str, Any], num_tenants: int) -> list[str]:
    with AdminClient(ready["base_url"], ready["admin_key"]) as admin:
        tenants = [admin.tenants.create(f"tenant-{i}") for i in range(num_tenants)]
        return [admin.keys.create(each.tenant_id, "load").api_key for each in tenants]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 tenants for a few seconds")
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of tenants")
    parser.add_argument("--rounds", type=int, default=100, help="of the lone step")
    options = parser.parse_args()
    counts: list[int] = [20] if options.quick else options.tenants
    seconds: float = 6.0 if options.quick else options.seconds
    num_rounds: int = 10 if options.quick else options.rounds
    num_threads = torch.get_num_threads()
    found: dict[int, Measured] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "up"
        with running(folder, arguments=["--threads", str(num_threads)]) as ready:
            store_url = valkey.redis_url(DataFolder(folder).root / "valkey.sock")
            keys = _new_keys(ready, max(counts))
            with EngineProcess(tiny_chat.model_dir(), "float32", num_threads) as engine:
                lone = asyncio.run(measure_lone(ready, keys[0], engine, num_rounds))
            for count in counts:
                found[count] = asyncio.run(measure(ready, store_url, keys[:count], seconds))
    _print(found, lone, seconds, num_rounds)


def _print(
    found: Mapping[int, Measured], lone: tuple[float, float], seconds: float, num_rounds: int
) -> None:
    what = (
        f"Tenants of `{BASE_MODEL}`, rank {LORA_RANK}, each sending its next operations when the "
        f"last are answered: {TRAINING_FRACTION:.0%} steps of {NUM_DATA} x {NUM_TOKENS} tokens, "
        f"else a sample of {MAX_TOKENS} tokens behind {NUM_TOKENS}; {seconds:g} s each, one "
        "server, one worker and their client on the same cores"
    )
    rows = [[str(count), *each.rates()] for count, each in found.items()]
    print(f"{caption(what)}\n\n{table(HEADER, rows)}\n")
    rows = [[str(count), *each.latencies()] for count, each in found.items()]
    print(f"The same run, in ms.\n\n{table(LATENCY_HEADER, rows)}\n")
    rows = [
        [str(count), *(f"{mib:,.0f} MiB" for mib in each.memory_mib)]
        for count, each in found.items()
    ]
    print(f"Resident memory at the end of each.\n\n{table(MEMORY_HEADER, rows)}\n")
    http_ms, engine_ms = (1000 * each for each in lone)
    row = [f"1 x {LONE_TOKENS} tokens", *(f"{ms:.1f}" for ms in (http_ms, engine_ms))]
    row.append(f"{http_ms - engine_ms:.1f}")
    print(f"One awaited step on an idle deployment, in ms; {num_rounds} rounds.\n")
    print(f"{table(['step', 'over HTTP', 'engine', 'on top'], [row])}\n")
    for count, each in found.items():
        for error in each.load.errors[:5]:
            print(f"Error beside {count} tenants: {error}\n")
    aims = [
        Aim("errors under load", f"{count} tenants", 0, len(each.load.errors), is_bound_above=True)
        for count, each in found.items()
    ]
    aim = "a tiny step on an idle deployment on top of its computation"
    aims.append(Aim(aim, "over HTTP", 20, http_ms - engine_ms, is_bound_above=True, unit=" ms"))
    print(aims_table(aims))


if __name__ == "__main__":
    main()
