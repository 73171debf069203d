"""What the client's tests start and watch; every data folder and process is the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import httpx

from cyclora_client.up.probes import Report

STANDIN = Path(__file__).with_name("standin.py")
TIMEOUT_S = 60.0

DRIVER = """
import sys
from pathlib import Path
from cyclora_client.up.display import choose_display
from cyclora_client.up.options import Commands, UpOptions
from cyclora_client.up.run import run_up

standin, data, *behaviours = sys.argv[1:]
commands = Commands(*[[sys.executable, standin, behaviour] for behaviour in behaviours])
options = UpOptions(Path(data), port=0, commands=commands)
sys.exit(run_up(options, choose_display(as_json=True)))
"""


class Events:
    """An observer that tests can wait on."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Report]] = []
        self.notices: list[str] = []
        self._changed = asyncio.Event()

    def progress(self, name: str, report: Report) -> None:
        self.reports.append((name, report))
        self._changed.set()

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for events until the condition holds."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class RunningUp:
    """One ``cyclora up`` whose server, scheduler and worker are stand-ins."""

    def __init__(self, data: Path, behaviours: tuple[str, str, str]) -> None:
        self.data = data
        command = [sys.executable, "-c", DRIVER, str(STANDIN), str(data), *behaviours]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stdout: IO[str] = self.process.stdout
        self._stderr: IO[str] = self.process.stderr

    def ready(self) -> dict[str, Any]:
        line = self._stdout.readline()
        assert line, self._stderr.read()
        return json.loads(line)

    def notices_until(self, text: str) -> list[str]:
        """Lines of standard error up to the first that holds ``text``."""
        lines: list[str] = []
        for line in self._stderr:
            lines.append(line.rstrip())
            if text in line:
                return lines
        raise AssertionError(f"{text!r} never came: {lines}")

    def rest(self) -> tuple[str, str]:
        """All further output, once it has ended."""
        return self.process.communicate(timeout=TIMEOUT_S)

    def close(self) -> None:
        with self.process:
            self.process.kill()


class ProcessHandle:
    """Waits for the end of a process that is not a child of the test."""

    def __init__(self, pid: int) -> None:
        self._descriptor: int | None = None
        with suppress(ProcessLookupError):
            self._descriptor = os.pidfd_open(pid)

    def has_ended(self, timeout_s: float = TIMEOUT_S) -> bool:
        if self._descriptor is None:
            return True
        ended, _, _ = select.select([self._descriptor], [], [], timeout_s)
        return bool(ended)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def tokenizer_files() -> dict[str, bytes]:
    """A tokenizer of a few words: "hello world" is [1, 2]."""
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {"[UNK]": 0, "hello": 1, "world": 2},
            "unk_token": "[UNK]",
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    return {
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def serve_tokenizers(
    models: dict[str, dict[str, bytes]],
) -> Callable[[httpx.Request], httpx.Response]:
    """A server that has these files for these base models, and nothing else."""

    def handler(request: httpx.Request) -> httpx.Response:
        _, _, path = request.url.path.partition("/api/v1/")
        if path == "get_server_capabilities":
            rows = [{"model_name": name} for name in models]
            return httpx.Response(200, json={"supported_models": rows})
        name, is_file, file = path.removeprefix("tokenizers/").partition("/files/")
        if name not in models:
            return httpx.Response(404, json={"detail": "no such base model"})
        if is_file:
            return httpx.Response(200, content=models[name][file])
        return httpx.Response(200, json={"base_model": name, "files": list(models[name])})

    return handler
