from __future__ import annotations

import json
from pathlib import Path

import pytest

from cyclora_client.up.bootstrap import Credentials
from cyclora_client.up.display import PlainDisplay, TerminalDisplay
from cyclora_client.up.errors import ChildFailedError
from cyclora_client.up.probes import Report
from cyclora_client.up.summary import Pids, ReadyModel, Summary

SUMMARY = Summary(
    base_url="http://127.0.0.1:8000",
    credentials=Credentials("tml-api", "tml-admin", "tenant-1"),
    credentials_file=Path("/data/credentials.json"),
    base_models=[ReadyModel("cyclora/tiny-chat", "/tokenizer")],
    pids=Pids(1, 2, [3], 4),
)


def test_json_is_one_line_on_stdout_and_progress_goes_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = PlainDisplay(as_json=True)
    display.progress("worker-0", Report("loading weights", 0.5))
    display.ready(SUMMARY)

    output = capsys.readouterr()
    assert output.err == "worker-0: loading weights 50%\n"
    assert output.out.count("\n") == 1
    assert json.loads(output.out)["pids"] == {
        "server": 1,
        "scheduler": 2,
        "workers": [3],
        "redis": 4,
    }


def test_a_person_sees_url_key_and_a_snippet_but_not_the_admin_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = TerminalDisplay()
    display.progress("worker-0", Report("loading weights", 0.5))
    display.progress("worker-0", Report("ready", 1.0, is_ready=True))
    display.ready(SUMMARY)

    text = capsys.readouterr().out
    assert "http://127.0.0.1:8000" in text
    assert "tml-api" in text
    assert "tml-admin" not in text
    assert SUMMARY.snippet() in text
    assert len(SUMMARY.snippet().splitlines()) == 5
    compile(SUMMARY.snippet(), "snippet", "exec")


@pytest.mark.parametrize("display", [PlainDisplay(as_json=True), TerminalDisplay()])
def test_a_failed_child_is_shown_with_its_log(
    display: PlainDisplay | TerminalDisplay, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ChildFailedError("worker-0", "died", "Traceback [1]\n")

    # Rich looks standard error up when it prints, so both displays can be made beforehand.
    display.failed(error)

    assert capsys.readouterr().err.strip() == (
        "error: worker-0 died\n--- end of its log ---\nTraceback [1]"
    )
