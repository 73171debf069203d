from __future__ import annotations

import os
from pathlib import Path

import pytest

from cyclora_client.up import memory
from cyclora_client.up.errors import UpError
from cyclora_client.up.memory import MIN_STORE_BYTES, default_store_bytes, parse_store_memory

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("512m", GIB // 2), ("4g", 4 * GIB), ("4 GB", 4 * GIB), ("1.5GiB", 3 * GIB // 2)],
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert parse_store_memory(text) == num_bytes


def test_too_little_for_a_single_request_is_refused() -> None:
    with pytest.raises(UpError, match="at least 64m"):
        parse_store_memory("1m")


def test_the_default_is_a_quarter_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", Path("/nowhere"))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert default_store_bytes() == max(MIN_STORE_BYTES, physical // 4)


@pytest.mark.parametrize(("limit", "num_bytes"), [("1073741824\n", GIB // 4), ("1\n", 64 * 2**20)])
def test_a_containers_limit_counts_if_it_is_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, num_bytes: int
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(limit)
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", file)

    assert default_store_bytes() == num_bytes


def test_a_container_without_a_limit_has_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "memory.max"
    file.write_text("max\n")
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", file)
    with_max = default_store_bytes()
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", Path("/nowhere"))

    assert with_max == default_store_bytes()
