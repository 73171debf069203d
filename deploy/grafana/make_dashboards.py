"""Writes dashboards/*.json for Grafana: ``python deploy/grafana/make_dashboards.py``.

Each panel is a title, a unit and its queries with their legends; the rest is the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
_NUM_COLUMNS = 3
_WIDTH, _HEIGHT = 24 // _NUM_COLUMNS, 8
_PERCENTILES = (0.5, 0.99)

Query = tuple[str, str]
"""PromQL, and the legend of what it finds."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    queries: Sequence[Query]
    is_stacked: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page, in rows that have a heading."""

    name: str
    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]


def _sum(metric: str, by: str = "", legend: str = "") -> Query:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (cyclora_{metric})", legend or f"{{{{{by}}}}}"


def _max(metric: str, by: str = "", legend: str = "") -> Query:
    grouped = f" by ({by})" if by else ""
    return f"max{grouped} (cyclora_{metric})", legend or f"{{{{{by}}}}}"


def _rate(metric: str, by: str = "", legend: str = "") -> Query:
    grouped = f" by ({by})" if by else ""
    expression = f"sum{grouped} (rate(cyclora_{metric}[$__rate_interval]))"
    return expression, legend or f"{{{{{by}}}}}"


def _percentiles(metric: str, by: str = "", matchers: str = "") -> list[Query]:
    """The median and the slowest percent of a histogram."""
    found: list[Query] = []
    for part in _PERCENTILES:
        labels = f"le, {by}" if by else "le"
        buckets = f"cyclora_{metric}_bucket{matchers}[$__rate_interval]"
        expression = f"histogram_quantile({part:g}, sum by ({labels}) (rate({buckets})))"
        found.append((expression, f"p{part * 100:g} {{{{{by}}}}}" if by else f"p{part * 100:g}"))
    return found


def _mean(metric: str, legend: str) -> Query:
    parts = [f"sum (rate(cyclora_{metric}_{part}[$__rate_interval]))" for part in ("sum", "count")]
    return " / ".join(parts), legend


def _ratio(above: str, below: str, legend: str) -> Query:
    parts = [f"sum (rate(cyclora_{each}_total[$__rate_interval]))" for each in (above, below)]
    return " / ".join(parts), legend


_SUBMISSIONS = '{route=~"/api/v1/(forward|forward_backward|optim_step|asample|create_model)"}'

OVERVIEW = Dashboard(
    "overview",
    "cyclora: overview",
    [
        (
            "Queue",
            [
                Panel("Queued operations", "short", [_sum("queued_operations", "kind")], True),
                Panel("Queued tokens", "short", [_sum("queued_tokens", "kind")], True),
                Panel("Oldest", "s", [_max("oldest_queued_seconds", "base_model")]),
                Panel("Queued until the first cycle", "s", _percentiles("queued_seconds", "kind")),
                Panel("Tenants with work", "short", [_sum("queued_tenants", "base_model")]),
                Panel(
                    "Gaps",
                    "short",
                    [
                        _sum("models_with_gap", legend="models that wait"),
                        _rate("gaps_closed_total", legend="given up per second"),
                    ],
                ),
            ],
        ),
        (
            "Throughput",
            [
                Panel("Tokens per second, as metered", "short", [_rate("tokens_total", "meter")]),
                Panel(
                    "Futures that became final",
                    "ops",
                    [_rate("settled_operations_total", "kind, state", "{{kind}} {{state}}")],
                ),
                Panel("Submission to end", "s", _percentiles("operation_seconds", "kind")),
            ],
        ),
        (
            "Clock",
            [
                Panel("Cycles", "ops", [_rate("cycles_dispatched_total", "base_model")]),
                Panel("Length of a cycle", "s", _percentiles("cycle_seconds")),
                Panel("Planning", "s", _percentiles("plan_seconds")),
                Panel("Waiting for company", "s", _percentiles("company_wait_seconds")),
                Panel(
                    "A cycle holds, on average",
                    "short",
                    [
                        _mean(f"cycle_{what}", what)
                        for what in ("tenants", "models", "operations", "samples")
                    ],
                ),
                Panel("Tokens of a cycle", "short", _percentiles("cycle_tokens")),
                Panel("Part of its budget", "percentunit", _percentiles("cycle_fill_ratio")),
                Panel("Plans refused", "ops", [_rate("cycles_not_dispatched_total", "reason")]),
                Panel("Looks at the workers", "ops", [_rate("scheduler_ticks_total", "instance")]),
            ],
        ),
        (
            "Processes",
            [
                Panel(
                    "Workers",
                    "short",
                    [_sum("workers", "base_model, state", "{{base_model}} {{state}}")],
                    True,
                ),
                Panel("Leads", "short", [_max("scheduler_is_leading", "instance")]),
                Panel(
                    "Workers declared dead",
                    "ops",
                    [_rate("workers_declared_dead_total", legend="per second")],
                ),
                Panel(
                    "Alive", "short", [_max("is_alive", "job, instance", "{{job}} {{instance}}")]
                ),
                Panel(
                    "Ready", "short", [_max("is_ready", "job, instance", "{{job}} {{instance}}")]
                ),
                Panel(
                    "Versions",
                    "short",
                    [_sum("build_info", "process, version", "{{process}} {{version}}")],
                ),
            ],
        ),
    ],
)

_TOP = 20

TENANTS = Dashboard(
    "tenants",
    "cyclora: tenants",
    [
        (
            "Usage",
            [
                Panel(
                    f"{title} tokens per second",
                    "short",
                    [
                        (
                            f"topk({_TOP}, sum by (tenant_id) "
                            f'(rate(cyclora_tokens_total{{meter="{meter}"}}[$__rate_interval])))',
                            "{{tenant_id}}",
                        )
                    ],
                    True,
                )
                for title, meter in (
                    ("Trained", "training"),
                    ("Sampled", "sampled"),
                    ("Prefilled", "prefill"),
                    ("Found cached", "cached_prefill"),
                )
            ],
        ),
        (
            "Share",
            [
                Panel(
                    f"Share of {title} tokens",
                    "percentunit",
                    [
                        (
                            f"sum by (tenant_id) (rate({counter}[5m])) / on () group_left () "
                            f"sum (rate({counter}[5m]))",
                            "{{tenant_id}}",
                        )
                    ],
                    True,
                )
                for title, counter in (
                    ("trained", 'cyclora_tokens_total{meter="training"}'),
                    ("sampled", 'cyclora_tokens_total{meter="sampled"}'),
                )
            ],
        ),
        (
            "Refused",
            [
                Panel(
                    "Requests refused, by tenant",
                    "reqps",
                    [
                        (
                            f"topk({_TOP}, sum by (tenant_id, reason) "
                            "(rate(cyclora_tenant_refused_requests_total[$__rate_interval])))",
                            "{{tenant_id}} {{reason}}",
                        )
                    ],
                ),
                Panel("Requests refused", "reqps", [_rate("refused_requests_total", "reason")]),
            ],
        ),
    ],
)

WORKERS = Dashboard(
    "workers",
    "cyclora: workers",
    [
        (
            "Cycles",
            [
                Panel(
                    "Where the time goes",
                    "percentunit",
                    [_rate("cycle_phase_seconds_sum", "phase")],
                    True,
                ),
                Panel("Phases", "s", _percentiles("cycle_phase_seconds", "phase")),
                Panel("Tokens through passes", "short", [_rate("pass_tokens_total", "instance")]),
                Panel(
                    "As plans count on it", "short", [_max("planned_tokens_per_second", "instance")]
                ),
                Panel(
                    "Microbatches: part of their bound",
                    "percentunit",
                    [
                        (
                            "sum by (instance) (rate(cyclora_microbatch_tokens_total"
                            "[$__rate_interval])) / sum by (instance) "
                            "(rate(cyclora_microbatches_total[$__rate_interval])) / "
                            "max by (instance) (cyclora_microbatch_max_tokens)",
                            "{{instance}}",
                        )
                    ],
                ),
                Panel("Passes run again alone", "ops", [_rate("packed_failures_total", "reason")]),
                Panel(
                    "Operations that failed",
                    "ops",
                    [_rate("failed_operations_total", "kind, category", "{{kind}} {{category}}")],
                ),
            ],
        ),
        (
            "Samples",
            [
                Panel(
                    "Rows per decode step",
                    "short",
                    [_ratio("decoded_rows", "decode_steps", "rows")],
                ),
                Panel(
                    "Tokens per second",
                    "short",
                    [
                        _rate("decoded_rows_total", legend="decoded"),
                        _rate("prefilled_tokens_total", legend="prefilled"),
                    ],
                ),
                Panel("Rows", "short", [_sum("sample_rows", "state")], True),
                Panel("Samples", "short", [_sum("running_samples", "instance")], True),
                Panel("KV blocks", "short", [_sum("kv_blocks", "state")], True),
                Panel("Preemptions", "ops", [_rate("preemptions_total", "instance")]),
            ],
        ),
        (
            "Adapters and memory",
            [
                Panel("Adapters", "short", [_sum("adapters", "place")], True),
                Panel("Their memory", "bytes", [_sum("adapter_bytes", "place")], True),
                Panel("Evicted", "ops", [_rate("evicted_adapters_total", "instance")]),
                Panel("Weights for samples", "short", [_sum("sampler_weights", "state")], True),
                Panel(
                    "GPU memory",
                    "bytes",
                    [_max("device_memory_bytes", "instance, state", "{{instance}} {{state}}")],
                ),
                Panel(
                    "Memory of the process",
                    "bytes",
                    [('process_resident_memory_bytes{job="worker"}', "{{instance}}")],
                ),
            ],
        ),
        (
            "Recovery",
            [
                Panel("Snapshots: time to write", "s", _percentiles("snapshot_seconds")),
                Panel("Being written", "short", [_sum("snapshots_in_progress", "instance")]),
                Panel(
                    "Snapshots",
                    "ops",
                    [
                        _rate("snapshot_seconds_count", legend="written"),
                        _rate("snapshots_failed_total", legend="failed"),
                    ],
                ),
                Panel("Time to restore", "s", _percentiles("restore_seconds")),
                Panel(
                    "Operations replayed", "ops", [_rate("replayed_operations_total", "instance")]
                ),
                Panel("Age of the lease", "s", [_max("lease_age_seconds", "instance")]),
                Panel("Start", "s", [_max("base_model_load_seconds", "instance")]),
            ],
        ),
    ],
)

SERVER = Dashboard(
    "server",
    "cyclora: server and store",
    [
        (
            "Requests",
            [
                Panel("Requests", "reqps", [_rate("requests_total", "route")], True),
                Panel("By status", "reqps", [_rate("requests_total", "status")], True),
                Panel(
                    "Submitting, whole request",
                    "s",
                    _percentiles("request_seconds", "route", _SUBMISSIONS),
                ),
                Panel("Submitting, in the store", "s", _percentiles("submit_seconds", "kind")),
                Panel(
                    "Operations submitted",
                    "ops",
                    [_rate("submitted_operations_total", "kind, outcome", "{{kind}} {{outcome}}")],
                ),
                Panel(
                    "Bodies",
                    "Bps",
                    [
                        _rate("request_bytes_total", legend="in"),
                        _rate("response_bytes_total", legend="out"),
                    ],
                ),
            ],
        ),
        (
            "Polls and connections",
            [
                Panel("Polls: from the news to the result", "s", _percentiles("poll_wake_seconds")),
                Panel("Held polls", "short", [_sum("held_polls", "instance")], True),
                Panel("Connections", "short", [_sum("open_connections", "instance")], True),
                Panel(
                    "Requests in flight", "short", [_sum("requests_in_flight", "instance")], True
                ),
                Panel("Event loops are late by", "s", _percentiles("loop_delay_seconds", "job")),
                Panel(
                    "Memory of the processes",
                    "bytes",
                    [('process_resident_memory_bytes{job="server"}', "{{instance}}")],
                ),
            ],
        ),
        (
            "Store and storage",
            [
                Panel("Store's memory", "bytes", [_max("store_memory_bytes", "state")]),
                Panel("Free on storage", "bytes", [_max("storage_free_bytes", "instance")]),
                Panel("Too low for new work", "short", [_max("shortage", "resource")]),
            ],
        ),
    ],
)

DASHBOARDS = (OVERVIEW, TENANTS, WORKERS, SERVER)


def as_json(dashboard: Dashboard) -> str:
    """The file that Grafana reads."""
    panels: list[dict[str, Any]] = []
    y = 0
    for heading, row in dashboard.rows:
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": heading, "gridPos": place})
        y += 1
        for index, panel in enumerate(row):
            x, line = index % _NUM_COLUMNS * _WIDTH, index // _NUM_COLUMNS
            place = {"x": x, "y": y + line * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
        y += -(-len(row) // _NUM_COLUMNS) * _HEIGHT
    value = {
        "uid": f"cyclora-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["cyclora"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["cyclora"], "title": "cyclora", "asDropdown": True}
        ],
        "panels": panels,
    }
    return json.dumps(value, indent=1) + "\n"


def _panel(panel: Panel) -> dict[str, Any]:
    custom = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.is_stacked else {}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    for each in DASHBOARDS:
        file = Path(__file__).parent / "dashboards" / f"{each.name}.json"
        file.write_text(as_json(each))
