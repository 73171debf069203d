"""Log lines, as a process that is started writes them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import structlog
from structlog.contextvars import get_contextvars

from cyclora_core.logs import name_in_log, named_in_log


def lines_of(program: str) -> list[dict[str, Any]]:
    """What a process wrote to standard error; nothing of it may be anything but JSON."""
    start = "from cyclora_core.logs import *; configure_logs('test')\n"
    result = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True)
    assert result.stdout == ""
    return [json.loads(line) for line in result.stderr.splitlines()]


def test_a_line_is_one_json_object_that_names_the_process() -> None:
    [line] = lines_of("structlog.get_logger().info('tested', num_things=2)")

    assert (line["event"], line["num_things"]) == ("tested", 2)
    assert (line["process"], line["level"]) == ("test", "info")
    assert line["timestamp"].endswith("Z")


def test_what_libraries_log_and_python_warns_of_looks_the_same() -> None:
    [logged, warned] = lines_of(
        "import warnings\n"
        "logging.getLogger('library').info('too much')\n"
        "logging.getLogger('library').warning('found %s', 'it')\n"
        "warnings.warn('old', UserWarning)\n"
    )

    assert (logged["event"], logged["logger"], logged["level"]) == (
        "found it",
        "library",
        "warning",
    )
    assert logged["process"] == warned["process"] == "test"
    assert "UserWarning: old" in warned["event"]


def test_an_error_that_ends_the_process_is_one_line() -> None:
    [line] = lines_of("raise RuntimeError('at last')")

    assert (line["event"], line["level"]) == ("process failed", "critical")
    assert "RuntimeError: at last" in line["exception"]


async def test_names_hold_for_one_request_and_not_for_the_next() -> None:
    structlog.contextvars.bind_contextvars(process="server")

    async def request(tenant_id: str) -> tuple[dict[str, str], dict[str, Any]]:
        with named_in_log() as names:
            name_in_log(tenant_id=tenant_id)
            await asyncio.sleep(0)
            name_in_log(model_id=f"model of {tenant_id}")
            return names, get_contextvars()

    first, second = await asyncio.gather(request("a"), request("b"))

    assert first[0] == {"tenant_id": "a", "model_id": "model of a"}
    assert second[0] == {"tenant_id": "b", "model_id": "model of b"}
    assert first[1] == {"process": "server", **first[0]}
    assert get_contextvars() == {"process": "server"}
    structlog.contextvars.clear_contextvars()


def test_names_outside_a_request_are_on_the_lines_all_the_same() -> None:
    name_in_log(worker_id="worker-0")

    assert get_contextvars() == {"worker_id": "worker-0"}
    structlog.contextvars.clear_contextvars()
