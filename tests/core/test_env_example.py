"""deploy/env.example says what the settings classes say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("env_example", DEPLOY / "env_example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_up_to_date() -> None:
    assert (DEPLOY / "env.example").read_text() == generator().env_example()


def test_the_list_of_known_names_is_up_to_date() -> None:
    assert generator().NAMES_FILE.read_text() == generator().setting_names()


def test_every_setting_says_what_it_means() -> None:
    for settings in generator()._PROCESSES.values():
        for name, field in settings.model_fields.items():
            assert field.description, f"{settings.__name__}.{name} has no meaning"


def test_processes_agree_on_the_defaults_of_what_they_share() -> None:
    defaults: dict[str, set[str]] = {}
    for settings in generator()._PROCESSES.values():
        for name, field in settings.model_fields.items():
            defaults.setdefault(name, set()).add(str(field.default).removeprefix("./"))

    assert {name: found for name, found in defaults.items() if len(found) > 1} == {}
