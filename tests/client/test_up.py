from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from client.builders import ProcessHandle, RunningUp

StartUp = Callable[..., RunningUp]
Watch = Callable[[dict[str, Any]], list[ProcessHandle]]

pytestmark = pytest.mark.timeout(120)


def test_one_line_of_json_says_everything_and_sigterm_ends_everything(
    start_up: StartUp, watch_processes: Watch
) -> None:
    up = start_up()
    ready = up.ready()
    processes = watch_processes(ready)

    up.process.send_signal(signal.SIGTERM)
    more_output, _ = up.rest()

    assert ready["base_url"] == "http://127.0.0.1:4321"
    assert ready["api_key"].startswith("tml-")
    assert ready["admin_key"].startswith("tml-")
    assert ready["base_models"] == [{"name": "cyclora/tiny-chat", "tokenizer_path": "/tokenizer"}]
    assert more_output == ""
    assert up.process.returncode == 0
    assert all(process.has_ended() for process in processes)
    for name in ("server", "scheduler", "worker-0"):
        assert "ended on request" in (up.data / "logs" / f"{name}.log").read_text()
    assert "bye bye" in (up.data / "logs" / "valkey.log").read_text()


def test_the_same_folder_gives_the_same_keys(start_up: StartUp) -> None:
    keys: list[str] = []
    for _ in range(2):
        up = start_up()
        keys.append(up.ready()["api_key"])
        up.process.send_signal(signal.SIGINT)
        up.rest()

    assert keys[0] == keys[1]


def test_a_second_up_on_the_same_folder_is_refused(start_up: StartUp) -> None:
    first = start_up()
    first.ready()

    second = start_up()
    _, errors = second.rest()

    assert second.process.returncode == 1
    assert f"in use by another `cyclora up` (process {first.process.pid})" in errors


def test_a_killed_server_takes_the_port_its_clients_know(start_up: StartUp) -> None:
    """With port 0 the first one chose freely; the next one may not."""
    up = start_up()
    ready = up.ready()
    up.notices_until("server: ready")

    os.kill(ready["pids"]["server"], signal.SIGKILL)
    up.notices_until("server ended (SIGKILL)")
    up.notices_until("server: ready")

    starts = (up.data / "logs" / "server.log").read_text().splitlines()
    assert starts == ["started ready 0", "started ready 4321"]


def test_a_killed_store_comes_back(start_up: StartUp) -> None:
    up = start_up()
    ready = up.ready()

    os.kill(ready["pids"]["redis"], signal.SIGKILL)
    up.notices_until("valkey ended (SIGKILL)")
    up.notices_until("valkey: ready")


def test_a_worker_that_cannot_start_ends_up_with_the_end_of_its_log(
    start_up: StartUp,
) -> None:
    up = start_up(worker="exit78")
    output, errors = up.rest()

    assert up.process.returncode == 1
    assert output == ""
    assert "error: worker-0 cannot run with these settings (exit code 78)" in errors
    assert "no such folder" in errors


def test_a_worker_that_dies_at_each_start_ends_up(start_up: StartUp) -> None:
    up = start_up(worker="exit1")
    _, errors = up.rest()

    assert up.process.returncode == 1
    assert "error: worker-0 died 5 times before it was ready" in errors


def test_nothing_survives_a_supervisor_that_is_killed(
    start_up: StartUp, watch_processes: Watch
) -> None:
    up = start_up()
    processes = watch_processes(up.ready())

    up.process.kill()
    up.rest()

    assert all(process.has_ended() for process in processes)
    # And what it left behind does not get in the way of the next start.
    assert start_up().ready()["base_url"] == "http://127.0.0.1:4321"


def test_a_second_ctrl_c_kills_at_once(start_up: StartUp, watch_processes: Watch) -> None:
    up = start_up(worker="stubborn")
    processes = watch_processes(up.ready())

    up.process.send_signal(signal.SIGINT)
    up.notices_until("stopping")
    up.process.send_signal(signal.SIGINT)
    up.rest()

    assert up.process.returncode == 130
    assert all(process.has_ended() for process in processes)


def test_ctrl_c_while_a_model_loads_stops_everything(start_up: StartUp) -> None:
    up = start_up(worker="loading")
    up.notices_until("worker-0: loading weights 25%")

    up.process.send_signal(signal.SIGINT)
    output, _ = up.rest()

    assert (up.process.returncode, output) == (0, "")
