"""``make demo``: a whole server on this machine, and two tenants that train on it at once.

What happens, in order: ``cyclora up`` starts everything with the built-in model; a second tenant is
created; both tenants run ``client/examples/sft_foo.py`` at the same time, one teaching its adapter
to answer "foo" and the other "bar"; then the scheduler's log shows that cycles were shared. Set
``KEEP=1`` to leave the server running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.text import Text

import cyclora_client
from cyclora_client.admin import AdminClient
from cyclora_client.tokenizers import TokenizerSource, offline_environment
from cyclora_client.up.options import TINY_CHAT
from cyclora_core.errors import CycloraError

DATA = Path("data") / "demo"
HUB = DATA / "hub"
"""Where the example, which knows only the plain SDK, finds the tokenizer."""

EXAMPLE = Path(cyclora_client.__file__).parents[1] / "examples" / "sft_foo.py"
LAST_WORD = "logprobs  "
"""What the example prints when all else is done."""

TRAINING_TIMEOUT_S = 900
STOP_TIMEOUT_S = 90
SHOWN_CYCLES = 5


class DemoError(CycloraError):
    """A part of the demo did not work."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of the two parties, and how its output is told apart."""

    name: str
    api_key: str
    answer: str
    colour: str


def main() -> int:
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    try:
        keep = os.environ.get("KEEP", "") not in ("", "0")
        with running_server(keep=keep) as up:
            run_demo(up, console)
            if keep:
                show_how_to_use(up, console)
    except CycloraError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def running_server(*, keep: bool) -> Generator[dict[str, Any]]:
    """Start ``cyclora up`` and give what it printed; stop it at the end unless told to keep it.

    It is kept only when everything worked: a demo that failed leaves nothing running.
    """
    command = [sys.executable, "-m", "cyclora_client", "up"]
    command += ["--json", "--port", "0", "--data", str(DATA)]
    # A session of its own, so that a kept server survives the terminal's Ctrl-C and hang-up.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    keep_it = False
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise DemoError(f"the server did not start (exit code {process.wait()})")
        yield {**json.loads(line), "pid": process.pid}
        keep_it = keep
    finally:
        if not keep_it:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def run_demo(up: dict[str, Any], console: Console) -> None:
    """Train both tenants at once and show what to look at.

    Raises:
        DemoError: one of them failed.
    """
    with AdminClient(up["base_url"], up["admin_key"]) as admin:
        second = admin.tenants.create("second")
        second_key = admin.keys.create(second.tenant_id, "demo").api_key
    tenants = [
        Tenant("default", up["api_key"], "foo", "cyan"),
        Tenant("second", second_key, "bar", "magenta"),
    ]
    TokenizerSource(up["base_url"], up["api_key"], HUB).folder(TINY_CHAT)

    console.rule("two tenants train at once")
    outputs = train_at_once(tenants, up["base_url"], console)

    console.rule("what to look at")
    for tenant in tenants:
        losses = [line for line in outputs[tenant.name] if "loss" in line]
        console.print(f"{tenant.name}: its loss fell", style=tenant.colour)
        for line in (losses[:1] + losses[-1:]) if len(losses) > 1 else losses:
            console.print(f"  {line}", markup=False)
    show_cycles(DATA / "logs" / "scheduler.log", console)


def train_at_once(tenants: list[Tenant], base_url: str, console: Console) -> dict[str, list[str]]:
    """Run the example for every tenant, and give the lines each printed."""
    outputs: dict[str, list[str]] = {tenant.name: [] for tenant in tenants}
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for tenant in tenants:
            command = [sys.executable, str(EXAMPLE), "--base-url", base_url]
            command += ["--api-key", tenant.api_key, "--base-model", TINY_CHAT]
            command += ["--answer", tenant.answer, "--name", f"demo_{tenant.answer}"]
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **offline_environment(HUB)},
            )
            assert process.stdout is not None
            processes.append(process)
            copy = (tenant, process.stdout, outputs[tenant.name], console)
            readers.append(threading.Thread(target=copy_lines, args=copy))
            readers[-1].start()
        codes = [process.wait(TRAINING_TIMEOUT_S) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"training took longer than {TRAINING_TIMEOUT_S} s") from error
    finally:
        for process in processes:
            process.kill()
        for reader in readers:
            reader.join()
    failed = [
        tenant.name
        for tenant, code in zip(tenants, codes, strict=True)
        if not has_finished(code, outputs[tenant.name])
    ]
    if failed:
        raise DemoError(f"the example failed for {', '.join(failed)}; its output is above")
    return outputs


def has_finished(exit_code: int, lines: list[str]) -> bool:
    """Whether the example came to its end.

    One in some hundred processes that use the SDK aborts after its last line: a thread of the SDK's
    HTTP library calls into Python while that shuts down.
    """
    was_aborted_late = exit_code == -signal.SIGABRT and any(LAST_WORD in line for line in lines)
    return exit_code == 0 or was_aborted_late


def copy_lines(tenant: Tenant, source: IO[str], lines: list[str], console: Console) -> None:
    """Print what a tenant's process prints, marked with its name."""
    with source:
        for line in source:
            text = line.rstrip("\n")
            lines.append(text)
            console.print(Text(f"{tenant.name:>8} | ", style=tenant.colour) + Text(text))


def show_cycles(log_file: Path, console: Console) -> None:
    """Show clock cycles in which both tenants' adapters were trained together.

    Raises:
        DemoError: there is none.
    """
    cycles = planned_cycles(log_file)
    shared = [cycle for cycle in cycles if cycle.get("num_models", 0) > 1]
    console.print(f"scheduler: {len(shared)} of {len(cycles)} cycles held both adapters")
    for cycle in shared[:SHOWN_CYCLES]:
        console.print(
            f"  cycle {cycle['cycle_id']}: {cycle['num_models']} adapters, "
            f"{cycle['num_tokens']} tokens in the same passes"
        )
    if not shared:
        raise DemoError(f"no cycle was shared; see {log_file}")


def planned_cycles(log_file: Path) -> list[dict[str, Any]]:
    """The scheduler's log lines about planned cycles."""
    cycles: list[dict[str, Any]] = []
    for line in log_file.read_text(errors="replace").splitlines():
        try:
            value: Any = json.loads(line)
        except ValueError:
            continue  # a library's own output
        if isinstance(value, dict) and value.get("event") == "cycle planned":
            cycles.append(value)
    return cycles


def show_how_to_use(up: dict[str, Any], console: Console) -> None:
    console.rule("the server is still running")
    console.print(f"use it:   export TINKER_BASE_URL={up['base_url']}", markup=False)
    console.print(f"          export TINKER_API_KEY={up['api_key']}", markup=False)
    for name, value in offline_environment(HUB).items():
        console.print(f"          export {name}={value}", markup=False)
    console.print(f"          {sys.executable} {EXAMPLE}", markup=False)
    console.print(f"stop it:  kill {up['pid']}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
