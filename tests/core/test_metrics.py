from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from cyclora_core.metrics import OTHER, Definition, Instruments, Kind, TenantLabels


def lines(instruments: Instruments) -> list[str]:
    text = generate_latest(instruments.registry).decode()
    return [line for line in text.splitlines() if line.startswith("cyclora_")]


def test_every_metric_is_exported_under_its_definition() -> None:
    instruments = Instruments("test")
    instruments.counter("things", "Things.", "kind").labels("a").inc(2)
    instruments.gauge("level", "Level.").set(3)
    instruments.histogram("wait_seconds", "Wait.", bounds=(1.0,)).observe(0.5)

    assert instruments.definitions[1:] == [
        Definition("cyclora_things_total", Kind.COUNTER, "Things.", ("kind",)),
        Definition("cyclora_level", Kind.GAUGE, "Level."),
        Definition("cyclora_wait_seconds", Kind.HISTOGRAM, "Wait."),
    ]
    found = lines(instruments)
    assert 'cyclora_things_total{kind="a"} 2.0' in found
    assert "cyclora_level 3.0" in found
    assert 'cyclora_wait_seconds_bucket{le="1.0"} 1.0' in found


def test_what_is_read_is_read_when_it_is_asked_for_and_not_before() -> None:
    instruments = Instruments("test")
    level = {"a": 1.0}
    reads: list[int] = []

    def read() -> dict[str, float]:
        reads.append(1)
        return level

    instruments.read_gauge("level", "Level.", read, "kind")
    instruments.read_counter("steps", "Steps.", lambda: 7)
    assert reads == []
    level["b"] = 2.0

    found = lines(instruments)

    assert len(reads) == 1
    assert [line for line in found if line.startswith("cyclora_level")] == [
        'cyclora_level{kind="a"} 1.0',
        'cyclora_level{kind="b"} 2.0',
    ]
    assert "cyclora_steps_total 7.0" in found


def test_two_processes_in_one_share_nothing() -> None:
    one, two = Instruments("one"), Instruments("two")
    one.counter("things", "Things.").inc()
    two.counter("things", "Things.")

    assert "cyclora_things_total 1.0" in lines(one)
    assert "cyclora_things_total 0.0" in lines(two)


def test_one_name_is_given_once() -> None:
    instruments = Instruments("test")
    instruments.counter("things", "Things.")

    with pytest.raises(ValueError, match="cyclora_things"):
        instruments.counter("things", "Other things.")


def test_what_runs_is_exported() -> None:
    [info] = [line for line in lines(Instruments("server")) if "build_info" in line]

    assert 'process="server"' in info


@pytest.mark.parametrize(("max_tenants", "expected"), [
    (0, [OTHER, OTHER, OTHER, OTHER]),
    (2, ["a", "b", OTHER, "a"]),
    (9, ["a", "b", "c", "a"]),
])  # fmt: skip
def test_only_so_many_tenants_have_a_label(max_tenants: int, expected: list[str]) -> None:
    labels = TenantLabels(max_tenants)

    assert [labels.of(tenant) for tenant in ("a", "b", "c", "a")] == expected
