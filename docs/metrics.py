"""Writes docs/metrics.md from what the processes define: ``python docs/metrics.py``."""

from __future__ import annotations

from pathlib import Path

from cyclora_core.clock import SystemClock
from cyclora_core.health import Health
from cyclora_core.metrics import Definition, Instruments
from cyclora_scheduler.metrics import SchedulerMetrics
from cyclora_server.metrics import ServerMetrics
from cyclora_workers.metrics import WorkerMetrics

_HEAD = """\
# Metrics, probes and logs

Made by `docs/metrics.py`; do not edit.

Each process has a port of its own for them, if `CYCLORA_METRICS_PORT` names one: `/metrics` for
Prometheus, `/healthz/live` and `/healthz/ready` for whoever supervises it. `cyclora up
--metrics-port 9464` opens them for all its processes, from that port on. The port asks for no key
and names tenants, so it listens on `127.0.0.1` unless `CYCLORA_METRICS_HOST` says otherwise, and
is never the one that tenants reach. The server answers the two probes on its public port too, there
without the reason.

| | alive (200 at `/healthz/live`) | ready (200 at `/healthz/ready`) |
|---|---|---|
| server | its event loop turned in the last 15 s | and it is not shutting down, store and \
storage answered in the last 5 s, and news of futures arrive |
| scheduler | its event loop turned in the last 15 s | and it got round in time, leading or \
standing by: it does not when the store is away |
| worker | its event loop turned in the last 15 s, and no call of the engine takes longer than \
`max_engine_call_s` | and its base model is loaded, its lease renewed in time, and it was not told \
to stop |

A store that is away makes nobody dead: started anew, everybody would wait for it again. While a
process loads it is alive and not ready.

`deploy/prometheus` has the scrape configuration and alerts, `deploy/grafana` four dashboards.

Every log line is a JSON object, with one line per request (`request finished`) and per cycle
(`cycle planned`, `cycle finished`). They name `tenant_id`, `model_id`, `request_id`, `cycle_id` and
`worker_id` where these apply, and never tokens, texts or keys.

Beside these, every process exports what Prometheus' client knows of it:
`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_open_fds` and others.
"""


def processes() -> dict[str, Instruments]:
    """All that each process defines."""
    made = {
        "server": ServerMetrics(0).instruments,
        "scheduler": SchedulerMetrics().instruments,
        "worker": WorkerMetrics().instruments,
    }
    for instruments in made.values():
        Health(SystemClock(), instruments)
    return made


def page() -> str:
    """The whole page."""
    defined = {process: each.definitions for process, each in processes().items()}
    common = [each for each in defined["server"] if all(each in d for d in defined.values())]
    parts = [_HEAD, _table("Every process", common)]
    for process, definitions in defined.items():
        own = [each for each in definitions if each not in common]
        parts.append(_table(process.capitalize(), own))
    return "\n".join(parts)


def _table(heading: str, definitions: list[Definition]) -> str:
    lines = [f"## {heading}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for each in sorted(definitions, key=lambda d: d.name):
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
