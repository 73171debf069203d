from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cyclora_client import demo


def cycle(cycle_id: int, num_models: int) -> str:
    line = {
        "event": "cycle planned",
        "cycle_id": cycle_id,
        "num_models": num_models,
        "num_tokens": 640,
    }
    return json.dumps(line)


def show(log: Path) -> str:
    output = io.StringIO()
    demo.show_cycles(log, Console(file=output, width=200))
    return output.getvalue()


def test_shared_cycles_are_shown_and_other_lines_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "scheduler.log"
    other = json.dumps({"event": "scheduler started"})
    log.write_text("\n".join([other, "a warning", cycle(1, 1), cycle(2, 2), "[1]"]))

    assert show(log).splitlines() == [
        "scheduler: 1 of 2 cycles held both adapters",
        "  cycle 2: 2 adapters, 640 tokens in the same passes",
    ]


def test_a_demo_in_which_no_cycle_was_shared_has_failed(tmp_path: Path) -> None:
    log = tmp_path / "scheduler.log"
    log.write_text(cycle(1, 1))

    with pytest.raises(demo.DemoError, match="no cycle was shared"):
        show(log)


TENANTS = [demo.Tenant("one", "tml-1", "foo", "cyan"), demo.Tenant("two", "tml-2", "bar", "red")]


def train(example: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> dict[str, list[str]]:
    example.write_text(program)
    monkeypatch.setattr(demo, "EXAMPLE", example)
    return demo.train_at_once(TENANTS, "http://server", Console(file=io.StringIO()))


def test_each_tenant_runs_the_example_with_its_own_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; print(sys.argv[4], sys.argv[8]); print('loss', file=sys.stderr)"

    outputs = train(tmp_path / "example.py", monkeypatch, program)

    assert {name: sorted(lines) for name, lines in outputs.items()} == {
        "one": ["loss", "tml-1 foo"],
        "two": ["loss", "tml-2 bar"],
    }


def test_a_tenant_whose_example_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(demo.DemoError, match="failed for two;"):
        train(tmp_path / "example.py", monkeypatch, "import sys; sys.exit('bar' in sys.argv)")


def test_an_example_that_aborts_counts_once_it_has_said_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os; print('logprobs     [-0.1]', flush=True); os.abort()"
    outputs = train(tmp_path / "example.py", monkeypatch, program)
    assert outputs["one"][0] == "logprobs     [-0.1]"

    with pytest.raises(demo.DemoError, match="failed for one, two;"):
        train(tmp_path / "example.py", monkeypatch, "import os; os.abort()")


def test_the_example_prints_the_last_word_that_the_demo_waits_for() -> None:
    assert demo.LAST_WORD in demo.EXAMPLE.read_text().splitlines()[-5]


def test_the_example_it_runs_is_where_it_looks() -> None:
    assert demo.EXAMPLE.is_file()
