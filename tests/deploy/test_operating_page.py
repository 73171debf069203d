"""docs/operating.md names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cyclora_core.environment import known_names
from deploy import compose_file

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operating.md"


@pytest.fixture
def text() -> str:
    return PAGE.read_text()


def test_the_table_of_compose_variables_is_complete(text: str) -> None:
    used = set(re.findall(r"\$\{(\w+)", compose_file.FILE.read_text()))
    described = set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.M))

    assert described == used | {"COMPOSE_PROFILES"}


def test_every_variable_of_ours_is_a_setting(text: str) -> None:
    named = set(re.findall(r"\b(CYCLORA_[A-Z_]*[A-Z])\b", text)) - {"CYCLORA_SERVER_PORT"}

    assert named
    assert named - known_names() == set()


def test_every_file_that_is_named_exists(text: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", text)
    commands = re.findall(r"(?<![\w/.])deploy/[\w./-]*\w", text)

    assert len(links) > 3
    for link in links:
        assert (PAGE.parent / link).exists(), link
    operators = {"deploy/.env", "deploy/cyclora.env", "deploy/models", "deploy/server"}
    for path in set(commands) - operators:
        assert (ROOT / path).exists(), path


QWEN_3 = {
    "Qwen3-0.6B": (28, 1024, 2048, 1024, 3072, 151_936, 596),
    "Qwen3-4B": (36, 2560, 4096, 1024, 9728, 151_936, 4022),
    "Qwen3-8B": (36, 4096, 4096, 1024, 12288, 151_936, 8191),
}
"""Layers, the widths D, Q, K and F of the page, vocabulary, and millions of parameters."""


@pytest.mark.parametrize("name", QWEN_3)
def test_the_sizes_follow_the_formulas(text: str, name: str) -> None:
    layers, d, q, k, f, vocabulary, millions = QWEN_3[name]
    per_rank = layers * (7 * d + 2 * q + 2 * k + 3 * f) + d + vocabulary
    adapter = 32 * per_rank
    kv = 2 * layers * k * 2

    row = re.search(rf"^\| {re.escape(name)}, bfloat16 \|(.*)\|$", text, re.M)
    assert row is not None
    assert [cell.strip() for cell in row[1].split("|")] == [
        f"{per_rank:,}",
        f"{millions * 2e-3:.1f} GB",
        f"{adapter * 18 / 1e9:.2f} GB",
        f"{adapter * 4 / 1e6:,.0f}, {adapter * 12 / 1e6:,.0f} MB",
        f"{kv / 1000:.0f} KB",
    ]
