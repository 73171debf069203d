"""Dashboards and alerts ask for what the processes export, and leave nothing of it out."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from cyclora_core.metrics import Instruments, Kind

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
PROMETHEUS = ROOT / "deploy" / "prometheus"

OF_PROMETHEUS = {"up": {"job", "instance"}}
TARGET_LABELS = {"job", "instance"}

NOT_SHOWN: dict[str, str] = {}
"""Metrics that no dashboard needs, and why."""


def module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"made_by_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where dataclasses look their module up
    spec.loader.exec_module(made)
    return made


@cache
def processes() -> dict[str, Instruments]:
    return module(ROOT / "docs" / "metrics.py").processes()


@cache
def exported() -> dict[str, set[str]]:
    """The labels of everything that can be asked for, by its name."""
    found = dict(OF_PROMETHEUS)
    for instruments in processes().values():
        for each in instruments.definitions:
            labels = {*each.labels, *TARGET_LABELS}
            if each.kind is Kind.HISTOGRAM:
                found[f"{each.name}_bucket"] = {*labels, "le"}
                found[f"{each.name}_sum"] = found[f"{each.name}_count"] = labels
            else:
                found[each.name] = labels
        for family in instruments.registry.collect():
            if family.name.startswith("process_"):
                for sample in family.samples:
                    found[sample.name] = TARGET_LABELS
    return found


@dataclass(frozen=True)
class Query:
    """One expression, and where it stands."""

    place: str
    expression: str
    legend: str = ""


def dashboards() -> dict[str, Any]:
    return {f.name: json.loads(f.read_text()) for f in (GRAFANA / "dashboards").glob("*.json")}


def queries() -> Iterator[Query]:
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", "1m")
                yield Query(f"{name}: {panel['title']}", expression, target["legendFormat"])


def alerts() -> Iterator[Query]:
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            text = " ".join(rule["annotations"].values())
            legend = " ".join(re.findall(r"\$labels(\.\w+)", text))
            yield Query(rule["alert"], rule["expr"], legend)


def mistakes(query: Query) -> list[str]:
    """What is asked for that no process exports."""
    found: list[str] = []
    at_hand: set[str] = set()
    grouped: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            labels = exported().get(node.name or "")
            if labels is None:
                found.append(f"{query.place}: {node.name} is not exported")
                return
            at_hand.update(labels)
            for matcher in node.matchers.matchers:
                if matcher.name not in labels:
                    found.append(f"{query.place}: {node.name} has no label {matcher.name}")
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query.expression), visit)
    shown = set(re.findall(r"\{\{\s*(\w+)", query.legend)) | set(
        re.findall(r"\.(\w+)", query.legend)
    )
    found += [f"{query.place}: no label {label}" for label in (grouped | shown) - at_hand]
    has_aggregation = "by (" in query.expression or "sum (" in query.expression
    if has_aggregation and not shown <= grouped:
        found.append(f"{query.place}: the legend shows {shown - grouped}, which is summed up")
    return found


def names(expression: str) -> set[str]:
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            found.add(node.name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def test_dashboards_ask_for_metrics_and_labels_that_exist() -> None:
    assert len(list(queries())) > 60
    assert [each for query in queries() for each in mistakes(query)] == []


def test_alerts_ask_for_metrics_and_labels_that_exist() -> None:
    assert len(list(alerts())) > 10
    assert [each for query in alerts() for each in mistakes(query)] == []


@pytest.mark.parametrize("wrong", [
    "sum(cyclora_request_total)",
    'sum(cyclora_requests_total{path="/"})',
    "sum by (path) (cyclora_requests_total)",
    "rate(cyclora_request_seconds[1m])",
    "rate(cyclora_plan_seconds_bucket{route='x'}[1m])",
])  # fmt: skip
def test_a_name_or_label_that_does_not_exist_is_found(wrong: str) -> None:
    assert mistakes(Query("here", wrong))


def test_a_legend_of_a_label_that_is_gone_is_found() -> None:
    query = "sum by (status) (cyclora_requests_total)"
    assert mistakes(Query("here", query, "{{status}}")) == []
    assert mistakes(Query("here", query, "{{route}}"))


def test_everything_that_is_exported_is_shown() -> None:
    asked = {name for query in queries() for name in names(query.expression)}
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in asked} | asked
    defined = {each.name for p in processes().values() for each in p.definitions}

    assert defined - families == NOT_SHOWN.keys(), "show it, or say in NOT_SHOWN why not"


def test_exported_names_are_those_of_the_definitions() -> None:
    """What is checked against above is what Prometheus gets."""
    for instruments in processes().values():
        families = {family.name: family.type for family in instruments.registry.collect()}
        for each in instruments.definitions:
            name = each.name.removesuffix("_total") if each.kind is Kind.COUNTER else each.name
            assert families[name] == each.kind


def test_the_dashboards_are_up_to_date() -> None:
    maker = module(GRAFANA / "make_dashboards.py")
    made = {f"{each.name}.json": maker.as_json(each) for each in maker.DASHBOARDS}

    assert made == {f.name: f.read_text() for f in (GRAFANA / "dashboards").iterdir()}


def test_panels_lie_side_by_side() -> None:
    for dashboard in dashboards().values():
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in dashboard["panels"])
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24


def test_the_page_about_metrics_is_up_to_date() -> None:
    page = module(ROOT / "docs" / "metrics.py").page()

    assert (ROOT / "docs" / "metrics.md").read_text() == page


def test_what_grafana_and_prometheus_read_is_well_formed() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    panels = [panel for each in dashboards().values() for panel in each["panels"]]
    used = {panel["datasource"]["uid"] for panel in panels if "targets" in panel}
    assert used == {each["uid"] for each in source["datasources"]}

    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert all((PROMETHEUS / name).is_file() for name in config["rule_files"])
    jobs = {each["job_name"] for each in config["scrape_configs"]}
    assert jobs == set(processes())
    expressions = [query.expression for query in (*queries(), *alerts())]
    asked = {found for each in expressions for found in re.findall(r'job=~?"([^"]*)"', each)}
    assert {job for each in asked for job in each.split("|")} <= jobs
