"""Hooks of the contract tests: note what each test calls, and hold the table to it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator

import pytest

from contract.compatibility import table
from contract.compatibility.recorder import recorder

WRITE = "CYCLORA_WRITE_COMPATIBILITY"
"""Set by ``make compatibility``: write the page instead of comparing with it."""

_SETTLE_TIMEOUT_S = 30.0
_seen: defaultdict[str, set[str]] = defaultdict(set)


def _claimed(test: str) -> set[str]:
    claims = table.rows(table.PAGE.read_text()) if table.PAGE.exists() else {}
    return {name for name, (status, note) in claims.items() if (status, note) == ("works", test)}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Record the test's calls; a test that the page names must make the calls it is named for."""
    calls = recorder.start()
    try:
        yield
    finally:
        recorder.stop()
    claimed = _claimed(item.nodeid)
    if claimed and not os.environ.get(WRITE):
        calls.settle(claimed, _SETTLE_TIMEOUT_S)
        lacking = claimed - calls.succeeded()
        assert not lacking, f"docs/compatibility.md says that this test exercises {lacking}"
    for name in calls.succeeded():
        _seen[name].add(item.nodeid)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Write the page, where that was asked for and every test passed."""
    if os.environ.get(WRITE) and exitstatus == pytest.ExitCode.OK:
        table.PAGE.write_text(table.render(_seen))
