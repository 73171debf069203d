"""How tenants share one worker: what one feels of a neighbour's long queue, and weights.

A small step is awaited alone and beside a tenant with a thousand large ones queued. Then two
tenants of the weights 1 and 3 train, and then sample, while both have more queued than can run;
what each gets is what is metered in the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from bare_http import BareTenant, random_datum
from deployed import BASE_MODEL, running
from machine import Aim, aims_table, caption, table

from cyclora_client.admin import AdminClient
from cyclora_core.usage import COLUMNS, GroupBy, Meter

T = TypeVar("T")

LORA_RANK = 8
SMALL = (1, 16)
LARGE = (8, 256)
SHARED = (4, 128)
"""Data of a step, and tokens of each."""
NUM_MODELS = 8
"""Of a tenant with a backlog: a model runs one step per cycle."""
NUM_SHARED_MODELS = 24
"""Of each tenant with a weight: what is ready for a cycle must be more than the cycle holds."""
SAMPLE_TOKENS = 32
"""Of a prompt, and as many behind it."""
KV_TOKENS = 4096
CYCLE_S = 1.0
WEIGHTS = (1.0, 3.0)
_LOOK_S = 0.3
_LONGEST_FILL_S = 120.0
_TOKENS = (Meter.TRAINING, Meter.PREFILL, Meter.CACHED_PREFILL, Meter.SAMPLED)


class Backlog(Protocol):
    """One tenant's work that is sent ahead."""

    tenant_id: str
    depth: int
    """Units that are to be queued at any time."""

    async def begin(self, http: BareTenant) -> None: ...

    async def add(self) -> None:
        """Send one unit and wait for nothing but its promise."""
        ...

    def num_waiting(self, num_operations: int, num_samples: int) -> int:
        """Units among what has not settled."""
        ...


class Steps:
    """Training steps of some models, which take turns; also a client that awaits each."""

    def __init__(
        self, tenant_id: str, size: tuple[int, int], num_models: int = 1, depth: int = 0
    ) -> None:
        self.tenant_id, self.depth = tenant_id, depth
        self._size, self._num_models, self._num_sent = size, num_models, 0
        self._rng = random.Random(tenant_id)
        self._model_ids: list[str] = []

    async def begin(self, http: BareTenant) -> None:
        self._http = http
        session = await http.post("create_session", {"tags": []})
        for index in range(self._num_models):
            creating = {
                "session_id": session["session_id"],
                "model_seq_id": index,
                "base_model": BASE_MODEL,
                "lora_config": {"rank": LORA_RANK, "seed": index},
            }
            created = await http.run("create_model", creating)
            self._model_ids.append(created["model_id"])

    async def add(self) -> None:
        await self._send()

    async def awaited_s(self) -> float:
        """Seconds of one step, from sending it to its answer."""
        began_s = time.perf_counter()
        await self._http.outcome(await self._send())
        return time.perf_counter() - began_s

    def num_waiting(self, num_operations: int, num_samples: int) -> int:
        return num_operations // 2

    async def _send(self) -> str:
        turn, index = divmod(self._num_sent, len(self._model_ids))
        self._num_sent += 1
        num_data, num_tokens = self._size
        data = [random_datum(self._rng, num_tokens) for _ in range(num_data)]
        body: dict[str, Any] = {"model_id": self._model_ids[index], "seq_id": 2 * turn + 1}
        given = {"data": data, "loss_fn": "cross_entropy"}
        await self._http.post("forward_backward", {**body, "forward_backward_input": given})
        stepping = {**body, "seq_id": 2 * turn + 2, "adam_params": {"learning_rate": 1e-4}}
        return (await self._http.post("optim_step", stepping))["request_id"]


class Samples:
    """Samples of the base model."""

    def __init__(self, tenant_id: str, depth: int) -> None:
        self.tenant_id, self.depth = tenant_id, depth
        self._rng = random.Random(tenant_id)
        self._sampler_id, self._num_sent = "", 0

    async def begin(self, http: BareTenant) -> None:
        self._http = http
        session = await http.post("create_session", {"tags": []})
        body = {
            "session_id": session["session_id"],
            "sampling_session_seq_id": 0,
            "base_model": BASE_MODEL,
        }
        answer = await http.post("create_sampling_session", body)
        self._sampler_id = answer["sampling_session_id"]

    async def add(self) -> None:
        tokens = [self._rng.randrange(10, 500) for _ in range(SAMPLE_TOKENS)]
        seed = self._num_sent
        self._num_sent += 1
        body = {
            "sampling_session_id": self._sampler_id,
            "seq_id": seed,
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
            "sampling_params": {"max_tokens": SAMPLE_TOKENS, "seed": seed, "stop": []},
        }
        await self._http.post("asample", body)

    def num_waiting(self, num_operations: int, num_samples: int) -> int:
        return num_samples


class Box:
    """A deployment seen by its administrator."""

    def __init__(self, ready: Mapping[str, Any], admin: AdminClient) -> None:
        self.base_url: str = ready["base_url"]
        self._admin = admin
        self._keys: dict[str, str] = {}

    def new_tenant(self, name: str, weight: float = 1.0) -> str:
        tenant_id = self._admin.tenants.create(name).tenant_id
        self._admin.tenants.update(tenant_id, weight=weight)
        self._keys[tenant_id] = self._admin.keys.create(tenant_id, "fairness").api_key
        return tenant_id

    def connected(self, tenant_id: str) -> BareTenant:
        return BareTenant(self.base_url, self._keys[tenant_id])

    def waiting(self, backlog: Backlog) -> int:
        """Units of a backlog that have not settled."""
        rows = [r for r in self._admin.queue.lengths() if r.tenant_id == backlog.tenant_id]
        operations, samples = (
            sum(row.num_operations for row in rows),
            sum(row.num_samples for row in rows),
        )
        return backlog.num_waiting(operations, samples)

    def cancel(self, tenant_id: str) -> None:
        """End all that a tenant has waiting."""
        self._admin.queue.cancel(tenant_id=tenant_id)

    def metered(self, tenant_id: str) -> int:
        """Tokens that a tenant was given so far."""
        sums = self._admin.usage.sums([GroupBy.TENANT], tenants=[tenant_id])
        return sum(row.amounts.get(COLUMNS[meter], 0) for row in sums for meter in _TOKENS)

    def cycles_s(self, tenant_id: str, since: datetime) -> list[float]:
        """Lengths of a tenant's cycles that were dispatched since then and have ended."""
        return [
            (row.ended_at - row.dispatched_at).total_seconds()
            for row in self._admin.cycles.list(limit=1000)
            if row.ended_at is not None and row.dispatched_at >= since and tenant_id in row.tenants
        ]


async def beside_backlogs(
    box: Box, backlogs: Sequence[Backlog], work: Callable[[], Awaitable[T]]
) -> T:
    """Do something while some tenants have all that they are to have queued.

    Raises:
        RuntimeError: a queue ran low meanwhile: the tenant's client is too slow for the worker.
    """
    clients = [await box.connected(each.tenant_id).__aenter__() for each in backlogs]
    try:
        for backlog, client in zip(backlogs, clients, strict=True):
            await backlog.begin(client)
        stopping, filled = asyncio.Event(), [asyncio.Event() for _ in backlogs]
        async with asyncio.TaskGroup() as tasks:
            feeding = [
                tasks.create_task(_feed(box, *each, stopping))
                for each in zip(backlogs, filled, strict=True)
            ]
            async with asyncio.timeout(_LONGEST_FILL_S):
                for each in filled:
                    await each.wait()
            done = await work()
            stopping.set()
        least = [task.result() / each.depth for task, each in zip(feeding, backlogs, strict=True)]
        if min(least) < 0.25:
            raise RuntimeError(f"queues ran low: {least} of what they were to hold")
        return done
    finally:
        for backlog, client in zip(backlogs, clients, strict=True):
            await client.__aexit__(None, None, None)
            await asyncio.to_thread(box.cancel, backlog.tenant_id)


async def _feed(box: Box, backlog: Backlog, filled: asyncio.Event, stopping: asyncio.Event) -> int:
    """Keep a backlog at its depth; returns the fewest units that were found waiting."""
    least = backlog.depth
    while not stopping.is_set():
        num_waiting = await asyncio.to_thread(box.waiting, backlog)
        if filled.is_set():
            least = min(least, num_waiting)
        for _ in range(backlog.depth - num_waiting):
            if stopping.is_set():
                break
            await backlog.add()
        filled.set()
        await asyncio.sleep(_LOOK_S)
    return least


@dataclass(frozen=True, slots=True)
class Beside:
    """A small step, in seconds."""

    alone: Sequence[float]
    beside: Sequence[float]
    cycles: Sequence[float]
    """Lengths of the large ones' cycles meanwhile."""
    num_queued: int

    @property
    def growth_cycles(self) -> float:
        grown_s = statistics.median(self.beside) - statistics.median(self.alone)
        return grown_s / statistics.median(self.cycles)


async def measure_beside(box: Box, num_queued: int, num_rounds: int, s: float) -> Beside:
    """Small steps alone, some rounds, and then for some seconds beside a long queue."""
    small = Steps(box.new_tenant("small"), SMALL)
    large = Steps(box.new_tenant("large"), LARGE, NUM_MODELS, num_queued)
    async with box.connected(small.tenant_id) as client:
        await small.begin(client)
        await small.awaited_s()
        alone = [await small.awaited_s() for _ in range(num_rounds)]

        async def beside() -> tuple[list[float], list[float]]:
            await small.awaited_s()
            since, until_s = datetime.now(UTC), time.perf_counter() + s
            found: list[float] = []
            while time.perf_counter() < until_s:
                found.append(await small.awaited_s())
            return found, await asyncio.to_thread(box.cycles_s, large.tenant_id, since)

        return Beside(alone, *await beside_backlogs(box, [large], beside), num_queued)


async def measure_weights(box: Box, backlogs: Sequence[Backlog], s: float) -> list[int]:
    """Tokens that each of two tenants is given in the same seconds."""

    def metered() -> list[int]:
        return [box.metered(each.tenant_id) for each in backlogs]

    async def watch() -> list[int]:
        await asyncio.sleep(s / 4)  # whoever's queue came first has all of the memory
        before = await asyncio.to_thread(metered)
        await asyncio.sleep(s)
        after = await asyncio.to_thread(metered)
        return [b - a for a, b in zip(before, after, strict=True)]

    return await beside_backlogs(box, backlogs, watch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short queue, a few seconds each")
    parser.add_argument("--queued", type=int, default=1000, help="large steps")
    parser.add_argument("--rounds", type=int, default=30, help="of the small step alone")
    parser.add_argument("--seconds", type=float, default=35.0, help="of each of the three")
    options = parser.parse_args()
    num_queued: int = 16 if options.quick else options.queued
    num_rounds: int = 5 if options.quick else options.rounds
    seconds: float = 3.0 if options.quick else options.seconds
    arguments = ["--threads", str(torch.get_num_threads())]
    settings = {
        "CYCLORA_TARGET_CYCLE_S": str(CYCLE_S),
        "CYCLORA_MAX_KV_TOKENS": str(KV_TOKENS),
    }
    with (
        tempfile.TemporaryDirectory() as scratch,
        running(Path(scratch) / "up", settings=settings, arguments=arguments) as ready,
        AdminClient(ready["base_url"], ready["admin_key"]) as admin,
    ):
        box = Box(ready, admin)
        beside = asyncio.run(measure_beside(box, num_queued, num_rounds, seconds))
        sampling = [
            Samples(box.new_tenant(f"sampling-{weight:g}", weight), 150) for weight in WEIGHTS
        ]
        sampled = asyncio.run(measure_weights(box, sampling, seconds))
        training = [
            Steps(box.new_tenant(f"training-{weight:g}", weight), SHARED, NUM_SHARED_MODELS, 128)
            for weight in WEIGHTS
        ]
        trained = asyncio.run(measure_weights(box, training, seconds))
    _print(beside, {"training": trained, "sampling": sampled}, seconds)


def _print(beside: Beside, shares: Mapping[str, Sequence[int]], seconds: float) -> None:
    (small_data, small), (large_data, large) = SMALL, LARGE
    what = (
        f"An awaited step of {small_data} x {small} tokens, alone and beside a tenant with "
        f"{beside.num_queued:,} steps of {large_data} x {large} tokens queued, of {NUM_MODELS} "
        f"models of `{BASE_MODEL}`, rank {LORA_RANK}; medians in ms, {len(beside.alone)} and "
        f"{len(beside.beside)} rounds"
    )
    medians = [statistics.median(each) for each in (beside.alone, beside.beside, beside.cycles)]
    row = [*(f"{1000 * each:,.0f}" for each in medians), f"{beside.growth_cycles:.2f}"]
    print(f"{caption(what)}\n\n{table(['alone', 'beside', 'cycle', 'growth in cycles'], [row])}\n")
    print(
        f"Tokens of two tenants of weights 1 and 3 in the same {seconds:g} s; steps of "
        f"{SHARED[0]} x {SHARED[1]} tokens in cycles of about {CYCLE_S:g} s, samples of "
        f"{SAMPLE_TOKENS} tokens behind {SAMPLE_TOKENS} in a memory of {KV_TOKENS:,}.\n"
    )
    rows = [
        [name, *(f"{tokens:,}" for tokens in each), f"{each[1] / max(each[0], 1):.2f}"]
        for name, each in shares.items()
    ]
    print(f"{table(['work', 'weight 1', 'weight 3', 'ratio'], rows)}\n")
    name = f"a small step beside {beside.num_queued:,} large ones grows by"
    aims = [Aim(name, "over HTTP", 1.1, beside.growth_cycles, is_bound_above=True, unit=" cycles")]
    for work, (light, heavy) in shares.items():
        off = 100 * abs(heavy / max(light, 1) / (WEIGHTS[1] / WEIGHTS[0]) - 1)
        aims.append(
            Aim("tokens by weights 1:3, off by", work, 5, off, is_bound_above=True, unit=" %")
        )
    print(aims_table(aims))


if __name__ == "__main__":
    main()
