"""What the house costs: the same steps through the official SDK and by the engine alone.

A deployment as shipped serves tenants that each train their own adapter through the SDK; the engine
runs the same data in a process of its own. Both take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch
from deployed import running, submit_step
from engine_process import EngineProcess
from machine import Aim, Plot, aims_table, caption, table
from rounds import Rounds, interleaved
from shapes import SHAPES, TINY, Shape
from tinker import types
from work import dealt, num_tokens, random_data, ranks

from cyclora_client.admin import AdminClient
from cyclora_core.operations import Datum, PassBody

DATA_PER_TENANT = 4
LONE_TOKENS = 16
HEADER = ["tenants", "tokens per step", "through the SDK", "engine", "SDK / engine", "spread"]
LONE_HEADER = ["step", "through the SDK", "engine", "on top"]


class Tenants:
    """Each with an API key, a service client and a training client of its own."""

    def __init__(self, ready: Mapping[str, Any], base_model: str, num_tenants: int) -> None:
        self._base_model = base_model
        self._threads = ThreadPoolExecutor(num_tenants)
        self._services: list[tinker.ServiceClient] = []
        with AdminClient(ready["base_url"], ready["admin_key"]) as admin:
            for i in range(num_tenants):
                tenant = admin.tenants.create(f"tenant-{i}")
                key = admin.keys.create(tenant.tenant_id, "benchmark").api_key
                self._services.append(tinker.ServiceClient(base_url=ready["base_url"], api_key=key))

    def pipelined(self, work: Sequence[PassBody], num_steps: int) -> Callable[[], None]:
        """Every tenant sends all its steps, then awaits them; all tenants at once."""
        batches = [_for_sdk(body.data) for body in work]
        clients = self._clients(len(work))

        def train(client: tinker.TrainingClient, batch: list[types.Datum]) -> None:
            for future in [submit_step(client, batch) for _ in range(num_steps)]:
                future.result()

        return lambda: _exhaust(self._threads.map(train, clients, batches))

    def awaited(self, body: PassBody) -> Callable[[], None]:
        """One step of one tenant."""
        batch, (client,) = _for_sdk(body.data), self._clients(1)
        return lambda: submit_step(client, batch).result()

    def close(self) -> None:
        self._threads.shutdown()

    def _clients(self, num_tenants: int) -> list[tinker.TrainingClient]:
        pairs = zip(self._services, ranks(num_tenants), strict=False)
        return [
            service.create_lora_training_client(self._base_model, rank=rank, seed=i).result()
            for i, (service, rank) in enumerate(pairs)
        ]


def _exhaust(results: Iterator[None]) -> None:
    for _ in results:
        pass


def _for_sdk(data: Sequence[Datum]) -> list[types.Datum]:
    made: list[types.Datum] = []
    for datum in data:
        inputs = {
            name: types.TensorData.from_numpy(np.asarray(value))
            for name, value in datum.loss_fn_inputs.items()
        }
        tokens = types.ModelInput.from_ints(datum.tokens.tolist())
        made.append(types.Datum(model_input=tokens, loss_fn_inputs=inputs))
    return made


@contextmanager
def deployment(shape: Shape, scratch: Path, dtype: str) -> Generator[Mapping[str, Any]]:
    name = "cyclora/" + shape.name.replace(" ", "")
    arguments = ["--base-model", f"{name}={shape.folder(scratch)}", "--dtype", dtype]
    arguments += ["--threads", str(torch.get_num_threads())]
    with running(scratch / f"up-{shape.num_layers}", arguments=arguments) as ready:
        yield {**ready, "base_model": name}


def measure_throughput(
    engine: EngineProcess, tenants: Tenants, work: Sequence[PassBody], num_steps: int, rounds: int
) -> Rounds:
    """Both ways over the same steps of every tenant."""
    ways = {
        "sdk": tenants.pipelined(work, num_steps),
        "engine": engine.steps(work, num_steps),
    }
    return interleaved(ways, rounds, f"{len(work)} tenants")


def measure_lone(engine: EngineProcess, tenants: Tenants, num_rounds: int) -> Rounds:
    """One step of one datum, awaited, both ways."""
    ids = np.arange(LONE_TOKENS + 1, dtype=np.int32)
    inputs = {
        "target_tokens": ids[1:].astype(np.int64),
        "weights": np.ones(LONE_TOKENS, np.float32),
    }
    body = PassBody("cross_entropy", {}, [Datum(ids[:-1], inputs)])
    ways = {"sdk": tenants.awaited(body), "engine": engine.steps([body], 1)}
    return interleaved(ways, num_rounds, "a lone step", num_warm_ups=5)


def main() -> None:
    names = [shape.name for shape in SHAPES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest shape, fewer rounds")
    parser.add_argument("--shapes", nargs="+", choices=names, default=names[:2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=4, help="that a tenant sends at once")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    counts: list[int] = [16] if options.quick else options.tenants
    num_rounds: int = 2 if options.quick else options.rounds
    num_steps: int = 2 if options.quick else options.steps
    shapes = [TINY] if options.quick else [s for s in SHAPES if s.name in options.shapes]
    aims: list[Aim] = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes:
            aims += _measure_shape(
                shape, Path(scratch), counts, num_steps, num_rounds, options.dtype
            )
    print(aims_table(aims))


def _measure_shape(
    shape: Shape,
    scratch: Path,
    counts: Sequence[int],
    num_steps: int,
    num_rounds: int,
    dtype_name: str,
) -> list[Aim]:
    where = f"{shape.name}, {dtype_name}"
    rows: list[list[str]] = []
    aims: list[Aim] = []
    with (
        EngineProcess(shape.folder(scratch), dtype_name, torch.get_num_threads()) as engine,
        deployment(shape, scratch, dtype_name) as ready,
    ):
        tenants = Tenants(ready, ready["base_model"], max(counts))
        for count in counts:
            work = dealt(random_data(count * DATA_PER_TENANT, shape.vocab_size), count)
            found = measure_throughput(engine, tenants, work, num_steps, num_rounds)
            tokens = num_tokens(work)
            speeds = [f"{found.per_s(way, tokens * num_steps):,.0f}" for way in found.seconds]
            ratio = found.speedup_range("sdk", "engine")
            rows.append([str(count), f"{tokens:,}", *speeds, ratio, f"{found.spread('sdk'):.0%}"])
            if count == 16:
                aim = "16 tenants through the SDK over the engine"
                aims.append(Aim(aim, where, 0.85, found.speedup("sdk", "engine")))
        lone = measure_lone(engine, tenants, 10 * num_rounds)
        tenants.close()
    sdk_ms, engine_ms = (1000 * lone.median_s(way) for way in ("sdk", "engine"))
    aim = "a lone tiny step on top of its computation"
    aims.append(Aim(aim, where, 20, sdk_ms - engine_ms, is_bound_above=True, unit=" ms"))

    what = (
        f"**{where}.** Trained tokens/s, {num_steps} steps sent at once by every tenant, "
        f"{DATA_PER_TENANT} data of 32 to 256 tokens each; {num_rounds} rounds"
    )
    plot = Plot(where, HEADER[0], HEADER[2:4])
    print(f"{caption(what)}\n\n{table(HEADER, rows, plot)}\n")
    what = f"**{where}.** One step of one tenant, awaited, in ms; {10 * num_rounds} rounds"
    row = [f"1 x {LONE_TOKENS} tokens"]
    row += [f"{ms:.1f}" for ms in (sdk_ms, engine_ms, sdk_ms - engine_ms)]
    print(f"{caption(what)}\n\n{table(LONE_HEADER, [row])}\n", flush=True)
    return aims


if __name__ == "__main__":
    main()
