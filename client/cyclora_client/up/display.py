"""What ``cyclora up`` shows: progress on standard error, the result on standard output."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cyclora_client.up.errors import ChildFailedError
from cyclora_client.up.probes import Report
from cyclora_client.up.summary import Summary
from cyclora_client.up.supervisor import Observer


class Display(Observer, Protocol):
    """Everything that ``cyclora up`` has to say."""

    def ready(self, summary: Summary) -> None: ...

    def failed(self, error: Exception) -> None: ...


class PlainDisplay:
    """Lines without decoration, for logs and programs; with ``as_json`` one line on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def progress(self, name: str, report: Report) -> None:
        part = "" if report.progress is None or report.is_ready else f" {report.progress:.0%}"
        self.notice(f"{name}: {report.stage}{part}")

    def notice(self, text: str) -> None:
        # Whoever read this may have gone; the server does not stop for want of a listener.
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)

    def ready(self, summary: Summary) -> None:
        print(summary.to_json_line() if self._as_json else _text(summary), flush=True)

    def failed(self, error: Exception) -> None:
        self.notice(_failure(error))


class TerminalDisplay:
    """A live progress bar for each process until all are ready, then the summary."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.fields[name]:<10}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._bars: dict[str, TaskID] = {}
        self._is_live = True

    def progress(self, name: str, report: Report) -> None:
        if not self._is_live:
            if report.is_ready:
                self.notice(f"{name} is ready again")
            return
        self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(report.stage, total=None, name=name)
        done = 1.0 if report.is_ready else report.progress
        self._progress.update(
            self._bars[name],
            description=report.stage,
            total=None if done is None else 1.0,
            completed=done or 0.0,
        )

    def notice(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False)

    def ready(self, summary: Summary) -> None:
        self._close()
        Console(highlight=False, emoji=False).print(_text(summary), markup=False, soft_wrap=True)

    def failed(self, error: Exception) -> None:
        self._close()
        self._console.print(_failure(error), style="red", markup=False, soft_wrap=True)

    def _close(self) -> None:
        if self._is_live:
            self._progress.stop()
            self._is_live = False


def choose_display(*, as_json: bool) -> Display:
    if as_json or not sys.stderr.isatty():
        return PlainDisplay(as_json=as_json)
    return TerminalDisplay()


def _text(summary: Summary) -> str:
    models = ", ".join(model.name for model in summary.base_models)
    return (
        f"\ncyclora is ready; Ctrl-C stops it\n"
        f"\n  URL          {summary.base_url}"
        f"\n  API key      {summary.credentials.api_key}"
        f"\n  admin key    in {summary.credentials_file}"
        f"\n  base models  {models}\n"
        f"\n{summary.snippet()}\n"
    )


def _failure(error: Exception) -> str:
    text = f"error: {error}"
    if isinstance(error, ChildFailedError) and error.log_tail:
        text += f"\n--- end of its log ---\n{error.log_tail.rstrip()}"
    return text
