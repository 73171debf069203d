from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from client.builders import TIMEOUT_S, Events
from cyclora_client.up.children import ProcessSpec
from cyclora_client.up.errors import ChildFailedError
from cyclora_client.up.supervisor import Supervisor

MakeSpec = Callable[..., ProcessSpec]


async def until_ready(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), TIMEOUT_S)


async def test_a_killed_child_is_started_again_with_the_same_environment(
    make_spec: MakeSpec, events: Events
) -> None:
    supervisor = Supervisor(events)
    child = supervisor.start(make_spec("ready"))
    await until_ready(child.ready)
    first_pid = child.pid
    assert first_pid is not None
    child.environment["CYCLORA_PORT"] = "777"

    os.kill(first_pid, signal.SIGKILL)
    await events.until(lambda: sum(report.is_ready for _, report in events.reports) == 2)

    assert child.report is not None
    assert child.report.facts["port"] == 777
    assert child.pid == child.report.facts["pid"] != first_pid
    assert events.notices == ["child ended (SIGKILL); starting it again in 0.2 s"]
    await supervisor.stop([child], TIMEOUT_S)


async def test_a_child_that_cannot_start_fails_with_the_end_of_its_log(
    make_spec: MakeSpec, events: Events
) -> None:
    supervisor = Supervisor(events)
    supervisor.start(make_spec("exit78"))

    with pytest.raises(ChildFailedError, match="cannot run with these settings") as caught:
        await asyncio.wait_for(supervisor.until_failure(), TIMEOUT_S)

    assert "no such folder" in caught.value.log_tail


async def test_a_child_that_dies_at_each_start_is_given_up(
    make_spec: MakeSpec, events: Events
) -> None:
    supervisor = Supervisor(events)
    supervisor.start(make_spec("exit1"))

    with pytest.raises(ChildFailedError, match=r"died 5 times before it was ready \(exit code 1\)"):
        await asyncio.wait_for(supervisor.until_failure(), TIMEOUT_S)


async def test_progress_of_a_loading_child_is_passed_on(
    make_spec: MakeSpec, events: Events
) -> None:
    supervisor = Supervisor(events)
    child = supervisor.start(make_spec("loading"))
    await events.until(lambda: bool(events.reports))
    await supervisor.stop([child], TIMEOUT_S)

    name, report = events.reports[0]
    assert (name, report.stage, report.progress) == ("child", "loading weights", 0.25)
    assert not child.ready.is_set()


async def test_stop_lets_a_child_end_by_itself(make_spec: MakeSpec, events: Events) -> None:
    supervisor = Supervisor(events)
    child = supervisor.start(make_spec("ready"))
    await until_ready(child.ready)

    await supervisor.stop([child], TIMEOUT_S)

    assert child.pid is None
    assert "ended on request" in child.log_tail()
    assert events.notices == []


async def test_a_child_that_ignores_the_request_is_killed(
    make_spec: MakeSpec, events: Events
) -> None:
    supervisor = Supervisor(events)
    child = supervisor.start(make_spec("stubborn"))
    await until_ready(child.ready)

    await supervisor.stop([child], timeout_s=0.1)

    assert child.pid is None
    assert events.notices == ["child did not stop within 0.1 s"]


async def test_a_child_stopped_while_it_is_made_does_not_run_on(
    make_spec: MakeSpec, events: Events
) -> None:
    supervisor = Supervisor(events)
    child = supervisor.start(make_spec("ready"))
    # Lets the child's task begin, which then waits for the new process.
    await asyncio.sleep(0)

    await asyncio.wait_for(supervisor.stop([child], TIMEOUT_S), TIMEOUT_S)

    assert child.pid is None


async def test_a_stale_ready_file_is_not_believed(make_spec: MakeSpec, events: Events) -> None:
    spec = make_spec("loading")
    with open(spec.environment["CYCLORA_READY_FILE"], "w") as file:
        file.write('{"pid": 1}')
    supervisor = Supervisor(events)
    child = supervisor.start(spec)
    await events.until(lambda: bool(events.reports))
    await supervisor.stop([child], TIMEOUT_S)

    assert [report.is_ready for _, report in events.reports] == [False]


async def test_the_admin_key_is_not_handed_to_children(
    make_spec: MakeSpec, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYCLORA_ADMIN_KEY", "tml-secret")
    spec = make_spec("ready")
    supervisor = Supervisor(events)
    child = supervisor.start(spec)
    await until_ready(child.ready)
    with open(f"/proc/{child.pid}/environ", "rb") as file:
        environment = file.read()
    await supervisor.stop([child], TIMEOUT_S)

    assert b"tml-secret" not in environment
