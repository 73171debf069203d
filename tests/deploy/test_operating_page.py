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
