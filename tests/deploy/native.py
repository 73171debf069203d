"""The services of deploy/compose.yaml as processes of this machine.

Their commands and their environment are the file's and the Dockerfile's. Only what a container
would give them is put in place of what they name: hosts and ports, folders, programs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cyclora_client.up import valkey
from deploy.compose_file import Service

DEADLINE_S = 90.0
"""Far beyond what anything here takes, also on a busy machine."""

_POLL_S = 0.5
_SERVER_PORT, _METRICS_PORT, _STORE_PORT = 8000, 9464, 6379
_FOLDERS = ("/storage", "/cache", "/data", "/config")

_VALKEY_CLI = """#!{python}
import sys, redis
connection = redis.Connection(port={port})
connection.connect()
connection.send_command(*sys.argv[1:])
reply = connection.read_response()
print(reply.decode() if isinstance(reply, bytes) else reply)
"""

_DOCKER = """#!{python}
import json, os, sys
places = json.loads({places!r})
words = sys.argv[1:]
while words[0] in ("compose", "exec", "run", "--rm", "--no-deps", "-T") or words[0] == "-f":
    words = words[2:] if words[0] == "-f" else words[1:]
service, *command = words
for old, new in places[service].items():
    command = [word.replace(old, new) for word in command]
os.execvp(command[0], command)
"""


@dataclass
class Running:
    """A service's process and the ports that are its own."""

    service: Service
    process: subprocess.Popen[bytes]
    log_file: Path
    ports: Mapping[int, int]
    """What it listens on here, by what it listens on in its container."""
    environment: Mapping[str, str]

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@dataclass
class NativeCompose:
    """Runs services on a folder; ``pythons`` are the interpreters of the images, by process."""

    folder: Path
    pythons: Mapping[str, Path]
    running: dict[str, Running] = field(default_factory=dict[str, Running])
    store_port: int = field(default_factory=lambda: free_port())

    def __post_init__(self) -> None:
        self.bin.mkdir(parents=True)
        self._write_program(
            "valkey-cli", _VALKEY_CLI.format(python=sys.executable, port=self.store_port)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bin(self) -> Path:
        """Programs that containers have and this machine may not."""
        return self.folder / "bin"

    @property
    def storage(self) -> Path:
        return self.place("server", "/storage")

    def place(self, service: str, path: str) -> Path:
        """Where a folder of a container lies; /storage and /cache are the same for all."""
        shared = path in ("/storage", "/cache")
        return self.folder / ("volumes" if shared else service) / path[1:]

    def port(self, name: str, container_port: int = _SERVER_PORT) -> int:
        return self.running[name].ports[container_port]

    def start(self, services: Iterable[Service]) -> None:
        """Start services in their order, each when those it waits for are healthy."""
        for service in services:
            for other in service.waits_for:
                self.wait_healthy(other)
            self._start(service)

    def _start(self, service: Service) -> None:
        ports = {port: free_port() for port in (_SERVER_PORT, _METRICS_PORT)}
        ports[_STORE_PORT] = self.store_port
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "LC_ALL": "C",  # an unknown locale ends Valkey at its start
            **{
                name: self._here(value, service, ports)
                for name, value in service.environment.items()
            },
        }
        if service.is_built:
            environment |= {
                "CYCLORA_PORT": str(ports[_SERVER_PORT]),  # 8000 in every container
                "HOME": str(self.folder),
            }
        log_file = self.folder / f"{service.name}.log"
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                [self._program(service), *self._arguments(service, ports)],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running[service.name] = Running(service, process, log_file, ports, environment)

    def _program(self, service: Service) -> str:
        program = service.command[0]
        if program == "python":
            return str(self.pythons[service.process])
        assert program == "valkey-server", f"{program!r} has no place on this machine"
        return valkey.find_binary()

    def _arguments(self, service: Service, ports: Mapping[int, int]) -> list[str]:
        arguments = [self._here(word, service, ports) for word in service.command[1:]]
        if service.command[0] == "valkey-server":  # what its container's address and folder are
            data = self.place(service.name, "/data")
            data.mkdir(parents=True, exist_ok=True)
            arguments += ["--port", str(self.store_port), "--bind", "127.0.0.1", "--dir", str(data)]
        return arguments

    def _here(self, text: str, service: Service, ports: Mapping[int, int]) -> str:
        """What a value of the file is on this machine."""
        text = text.replace(f"store:{_STORE_PORT}", f"127.0.0.1:{self.store_port}")
        text = text.replace("0.0.0.0", "127.0.0.1").replace(
            str(_METRICS_PORT), str(ports[_METRICS_PORT])
        )
        for path in _FOLDERS:
            if text == path or text.startswith(f"{path}/"):
                here = self.place(service.name, path)
                here.mkdir(parents=True, exist_ok=True)
                text = str(here) + text[len(path) :]
        return text

    def is_healthy(self, name: str) -> bool:
        """What the service's own health check says."""
        running = self.running[name]
        command = [
            self._here(word, running.service, running.ports) for word in running.service.healthcheck
        ]
        if command[0] == "python":
            command[0] = str(self.pythons[running.service.process])
        return (
            subprocess.run(
                command, env=running.environment, capture_output=True, check=False, timeout=30
            ).returncode
            == 0
        )

    def wait_healthy(self, *names: str) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        for name in names:
            while not self.is_healthy(name):
                running = self.running[name]
                has_ended = running.process.poll() is not None
                if has_ended or time.monotonic() > deadline_s:
                    raise RuntimeError(f"{name} does not get healthy: {running.log()[-4000:]}")
                time.sleep(_POLL_S)

    def stop(self, *names: str) -> dict[str, int]:
        """SIGTERM to all of these, or to everything, the store last; gives their exit codes.

        Nothing takes longer than its stop_grace_period, or it is killed and the test fails.
        """
        order = sorted(names or self.running, key=lambda name: name == "store")
        codes: dict[str, int] = {}
        for group in ([n for n in order if n != "store"], [n for n in order if n == "store"]):
            for name in group:
                self.running[name].process.send_signal(signal.SIGTERM)
            for name in group:
                running = self.running.pop(name)
                try:
                    codes[name] = running.process.wait(running.service.stop_grace_s)
                finally:
                    running.process.kill()
                    running.process.wait()
        return codes

    def programs_for(self, services: Iterable[str]) -> dict[str, str]:
        """An environment in which ``docker compose exec`` runs commands here."""
        paths = ("/storage", "/data")
        places = {name: {p: str(self.place(name, p)) for p in paths} for name in services}
        cyclora = self.bin / "cyclora"
        cyclora.unlink(missing_ok=True)
        cyclora.symlink_to(self.pythons["server"].with_name("cyclora"))
        program = _DOCKER.format(python=sys.executable, places=json.dumps(places))
        self._write_program("docker", program)
        return {"PATH": f"{self.bin}:{os.environ['PATH']}", "LC_ALL": "C"}

    def _write_program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)


def run_client(
    python: Path, script: Path, arguments: Sequence[str], variables: Mapping[str, str] | None = None
) -> Any:
    """What a script prints as its last line, run by another Python as a client would."""
    ran = subprocess.run(
        [str(python), str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env={"PATH": "/usr/bin:/bin", "HOME": str(python.parent), **(variables or {})},
    )
    assert ran.returncode == 0, f"ended with {ran.returncode}: {ran.stderr[-4000:]}"
    return json.loads(ran.stdout.splitlines()[-1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
