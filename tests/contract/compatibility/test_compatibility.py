"""The page about compatibility covers the installed SDK, and names tests that exist."""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
from pathlib import Path

import pytest

from contract.compatibility import surface, table
from contract.compatibility.recorder import Recorder, command_name
from contract.compatibility.refused import REFUSED

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[str, str]]:
    return table.rows(table.PAGE.read_text())


def test_every_call_of_the_installed_sdk_is_exercised_or_refused(
    rows: dict[str, tuple[str, str]],
) -> None:
    """When this fails: write the test or the reason, and run ``make compatibility``."""
    assert surface.call_names() == list(rows)
    missing = {name for name, (status, _note) in rows.items() if status == table.MISSING}
    assert missing == set()
    assert importlib.metadata.version("tinker") in table.PAGE.read_text()


def test_every_exercising_test_exists(rows: dict[str, tuple[str, str]]) -> None:
    for status, note in rows.values():
        if status == "works":
            file, _, test = note.partition("::")
            assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(), note


def test_what_is_refused_has_its_present_reason_and_is_not_exercised(
    rows: dict[str, tuple[str, str]],
) -> None:
    refused = {name: note for name, (status, note) in rows.items() if status == "refused"}

    assert refused == REFUSED


def test_the_surface_has_methods_functions_and_commands() -> None:
    names = surface.call_names()

    assert len(names) == len(set(names))
    for name in (
        "ServiceClient.create_lora_training_client",
        "TrainingClient.forward_backward",
        "SamplingClient.sample",
        "RestClient.search_sessions",
        "AdminClient.get_billing_usage",
        "APIFuture.result",
        "auth.get_tinker_token",
        "tinker checkpoint download",
    ):
        assert any(each == name or each.startswith(f"{name} ") for each in names), name
    assert not [name for name in names if name.endswith("_async")]


def test_a_failed_future_does_not_count() -> None:
    recorder = Recorder()
    calls = recorder.start()
    good: concurrent.futures.Future[int] = concurrent.futures.Future()
    bad: concurrent.futures.Future[int] = concurrent.futures.Future()
    recorder.note("good", good)
    recorder.note("bad", bad)
    recorder.note("pending", concurrent.futures.Future())
    good.set_result(1)
    bad.set_exception(ValueError())
    recorder.stop()
    recorder.note("later", None)

    assert calls.succeeded() == {"good"}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/x/tinker", "-f", "json", "run", "info", "abc"], "tinker run info"),
        (["python", "-m", "tinker.cli", "version"], "tinker version"),
        (["/x/tinker", "--help"], None),
        (["ls", "run", "info"], None),
    ],
)
def test_a_command_line_is_recognised(arguments: list[str], name: str | None) -> None:
    assert command_name(arguments) == name


def test_the_page_counts_what_works() -> None:
    names = surface.call_names()
    page = table.render({names[0]: {"a.py::test_b[c]", "a.py::test_z"}})

    assert f"1 of {len(names)} " in page
    assert table.rows(page)[names[0]] == ("works", "a.py::test_z")
