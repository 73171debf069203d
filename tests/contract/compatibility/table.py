"""``docs/compatibility.md``: every call of the SDK with the contract test that exercises it."""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from contract.compatibility import surface
from contract.compatibility.refused import REFUSED

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"
MISSING = "not exercised"

_ROW_RE = re.compile(r"^\| `([^`]+)` \| (works|refused|not exercised) \| (.*) \|$")

_TEXT = """\
# Compatibility

**{percent:.0f} % of the calls of tinker {version} work**: {works} of {total} public client methods
and commands succeed in a contract test against a running server. {refused} are refused or left out,
each with its reason.{missing}

`make compatibility` writes this page from a run of `tests/contract`. A method counts when a test
that passed called it and its result arrived; asynchronous twins count as one. A test fails when a
method of the installed SDK has no row here, and another when a row's test no longer calls it.
Older SDKs run the script of `tests/contract/old_sdks`; `tests/cookbook` runs tinker-cookbook's own
training loops.

| call | status | test or reason |
|---|---|---|
{rows}
"""


def rows(page: str) -> dict[str, tuple[str, str]]:
    """The page's table: status and note of each call."""
    found = (_ROW_RE.match(line) for line in page.splitlines())
    return {row[1]: (row[2], row[3].strip("`")) for row in found if row}


def render(tests: Mapping[str, set[str]]) -> str:
    """The page for what tests were seen to call, by call."""
    lines: list[str] = []
    counts = {"works": 0, "refused": 0, MISSING: 0}
    names = surface.call_names()
    num_calls = Counter(test for each in tests.values() for test in each)

    def how_special(test: str) -> tuple[bool, int, str]:
        """A test of one case and of few calls says most about a call."""
        return "[" in test, num_calls[test], test

    for name in names:
        status, note = _status(name, min(tests.get(name, ()), key=how_special, default=None))
        counts[status] += 1
        lines.append(f"| `{name}` | {status} | {note} |")
    missing = f" {counts[MISSING]} are not exercised yet." if counts[MISSING] else ""
    return _TEXT.format(
        percent=100 * counts["works"] / len(names),
        version=importlib.metadata.version("tinker"),
        works=counts["works"],
        total=len(names),
        refused=counts["refused"],
        missing=missing,
        rows="\n".join(lines),
    )


def _status(name: str, test: str | None) -> tuple[str, str]:
    if test is not None:
        return "works", f"`{test}`"
    if name in REFUSED:
        return "refused", REFUSED[name]
    return MISSING, ""
