"""How long a crash is felt: seconds from SIGKILL of a process to the next result of its client.

One client trains through the SDK with a few steps always under way; every process of a deployment
as shipped is killed in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from deployed import data, new_client, running, submit_step
from machine import caption, table
from rich.progress import track

VICTIMS = ("server", "scheduler", "worker", "valkey")
NUM_UNDER_WAY = 4
_LOG_NAMES = {"worker": "worker-0"}


class Pids:
    """The present process of each victim: those the supervisor started last."""

    def __init__(self, up_folder: Path, first: dict[str, Any]) -> None:
        self._ready = up_folder / "ready"
        self._valkey = up_folder / "valkey.sock"
        self._first = first

    def __getitem__(self, victim: str) -> int:
        if victim == "valkey":
            return self._holder_of_lock()
        file = self._ready / f"{_LOG_NAMES.get(victim, victim)}.json"
        while True:
            try:
                return int(json.loads(file.read_text())["pid"])
            except (FileNotFoundError, KeyError, ValueError):
                time.sleep(0.01)

    def _holder_of_lock(self) -> int:
        """Valkey writes no ready file; it is the process whose command line names our folder.

        It renames itself to its program and socket once it has read its configuration.
        """
        names = [str(self._valkey.with_name(name)) for name in ("valkey.conf", "valkey.sock")]
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and process.name != str(os.getpid()):
                try:
                    command = (process / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                program = command.split("\0")[0].split(" ")[0]
                is_store = program.endswith(("valkey-server", "redis-server"))
                if is_store and any(name in command for name in names):
                    return int(process.name)
        raise LookupError("no Valkey runs on the benchmark's folder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
    undisturbed: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        with running(folder) as ready:
            pids = Pids(folder, ready["pids"])
            client = new_client(ready)
            batch = data(4, 128)
            under_way = deque(submit_step(client, batch) for _ in range(NUM_UNDER_WAY))

            def next_result() -> float:
                started_s = time.perf_counter()
                under_way.popleft().result(timeout=300)
                took_s = time.perf_counter() - started_s
                under_way.append(submit_step(client, batch))
                return took_s

            for _ in track(range(options.rounds), description="killing"):
                for victim in VICTIMS:
                    # Long enough that the supervisor takes the process for stable again.
                    calm_until_s = time.monotonic() + 8
                    while time.monotonic() < calm_until_s:
                        undisturbed.append(next_result())
                    os.kill(pids[victim], signal.SIGKILL)
                    killed_s = time.perf_counter()
                    # Results that were settled before the kill do not count.
                    for _ in range(NUM_UNDER_WAY + 1):
                        under_way.popleft().result(timeout=300)
                        under_way.append(submit_step(client, batch))
                    seconds[victim].append(time.perf_counter() - killed_s)
            for future in under_way:
                future.result(timeout=300)
    calm_s = statistics.median(undisturbed) * (NUM_UNDER_WAY + 1)
    rows = [
        [victim, f"{statistics.median(each):.1f}", f"{max(each):.1f}"]
        for victim, each in seconds.items()
    ]
    print(
        caption(
            f"Seconds from SIGKILL to the {NUM_UNDER_WAY + 1}th result after it (without a kill: "
            f"{calm_s:.2f}), {options.rounds} kills each, 4 x 128 tokens a step, cyclora/tiny-chat"
        )
    )
    print(table(["killed", "median s", "longest s"], rows))


if __name__ == "__main__":
    main()
