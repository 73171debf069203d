"""Uploading an adapter that PEFT has saved, to train on it or to sample from it."""

from __future__ import annotations

import os
import tarfile
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx

from cyclora_core.errors import CycloraError, NotFound, ServerError, Unavailable, UserError
from cyclora_core.peft import CONFIG_FILE, WEIGHTS_FILE

_CHUNK_BYTES = 1024 * 1024
_TIMEOUT_S = 300.0
_TRIES = 3
_BUSY = frozenset({408, 429, 500, 502, 503, 504})


def upload_adapter(
    folder: str | Path,
    base_model: str,
    *,
    name: str = "adapter",
    base_url: str | None = None,
    api_key: str | None = None,
    transport: httpx.BaseTransport | None = None,
) -> str:
    """Upload the adapter in ``folder``; returns its ``tinker://`` path.

    The path is a training checkpoint without optimizer state: ``create_training_client_from_state``
    and ``create_sampling_client`` take it. What is not given is taken from ``TINKER_BASE_URL`` and
    ``TINKER_API_KEY``. A connection that breaks off is tried again, to the effect of once.

    Raises:
        UserError: the folder holds no adapter that PEFT saved as safetensors, or the server refuses
            it; the message says why.
        Unavailable: the server cannot be reached, or has no room at the moment.
        ServerError: the server failed.
    """
    files = _files(Path(folder))
    headers = {
        "X-API-Key": api_key or os.environ.get("TINKER_API_KEY", ""),
        "X-Idempotency-Key": uuid.uuid4().hex,
        "Content-Type": "application/x-tar",
        "Content-Length": str(sum(len(part) for part in _frame(files)) + _num_content_bytes(files)),
    }
    url = base_url or os.environ.get("TINKER_BASE_URL") or "http://127.0.0.1:8000"
    with httpx.Client(
        base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT_S, transport=transport
    ) as client:
        return _path(_send(client, files, {"base_model": base_model, "name": name}))


def _send(client: httpx.Client, files: list[Path], params: dict[str, str]) -> httpx.Response:
    """The last answer, after some tries if the server was busy or the connection broke off."""
    for num_left in reversed(range(_TRIES)):
        try:
            answer = client.post("/api/v1/adapters", params=params, content=_tar(files))
        except httpx.HTTPError as error:
            if num_left == 0:
                raise Unavailable(f"no answer from {client.base_url}: {error}") from error
            continue
        if answer.status_code not in _BUSY or num_left == 0:
            return answer
    raise AssertionError("the last try returns or raises")


def _files(folder: Path) -> list[Path]:
    files = [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{str(folder)!r} holds no {file.name}; expected what PEFT's save_pretrained "
                "writes, as safetensors"
            )
    return files


def _tar(files: list[Path]) -> Generator[bytes]:
    """A tar of the files: config first, so that what cannot be served is refused early."""
    frame = _frame(files)
    for header, padding, file in zip(frame[0:-1:2], frame[1:-1:2], files, strict=True):
        yield header
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                yield chunk
        yield padding
    yield frame[-1]


def _frame(files: list[Path]) -> list[bytes]:
    """What a tar has around the contents: a header and a padding for each file, and the end."""
    parts: list[bytes] = []
    for file in files:
        entry = tarfile.TarInfo(file.name)
        entry.size = file.stat().st_size
        parts += [entry.tobuf(tarfile.GNU_FORMAT), bytes(-entry.size % tarfile.BLOCKSIZE)]
    return [*parts, bytes(2 * tarfile.BLOCKSIZE)]


def _num_content_bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _path(answer: httpx.Response) -> str:
    try:
        value: Any = answer.json()
    except ValueError:
        value = {}
    if answer.is_success and isinstance(value, dict) and "tinker_path" in value:
        return str(value["tinker_path"])
    detail = value.get("detail") if isinstance(value, dict) else None
    raise _error(answer.status_code, f"{detail or answer.text[:200]} (status {answer.status_code})")


def _error(status: int, message: str) -> CycloraError:
    if status == 404:
        return NotFound(message)
    if status in _BUSY - {500}:
        return Unavailable(message)
    return UserError(message) if 400 <= status < 500 else ServerError(message)
