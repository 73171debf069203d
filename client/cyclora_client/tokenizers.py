"""Tokenizer files of a server's base models, kept in a private folder on this machine.

The folder has the layout of a Hugging Face cache, one snapshot per content::

    <root>/models--org--name/refs/main                 the hash of the newest snapshot
    <root>/models--org--name/snapshots/<hash>/...      the files

so a program that knows only the plain SDK can use it too, with ``HF_HUB_CACHE=<root>`` and
``HF_HUB_OFFLINE=1`` in its environment (``offline_environment``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from cyclora_client.files import write_atomic
from cyclora_core.errors import ServerError

_FILE_NAME_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_BASE_MODEL_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,2}")
_TIMEOUT_S = 60.0

_CONFIG = "config.json"
"""Always looked for; an offline lookup fails unless it is there or marked as known to be absent."""


def default_cache() -> Path:
    """The private folder: ``$XDG_CACHE_HOME/cyclora/hub``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "cyclora" / "hub"


def offline_environment(cache: Path) -> dict[str, str]:
    """Variables with which Hugging Face libraries look into ``cache`` and nowhere else."""
    return {"HF_HUB_CACHE": str(cache.absolute()), "HF_HUB_OFFLINE": "1"}


class TokenizerSource:
    """One server's tokenizers, fetched when first asked for and then remembered."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        cache: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._cache = cache
        self._transport = transport
        self._folders: dict[str, Path] = {}

    def folder(self, base_model: str) -> Path | None:
        """A folder that ``AutoTokenizer.from_pretrained`` can load; None if not served here.

        Raises:
            ServerError: the server cannot be asked, or answers with what is no file list.
        """
        if base_model not in self._folders:
            files = self._fetch(base_model)
            if files is None:
                return None
            cache = self._cache or default_cache()
            self._folders[base_model] = write_snapshot(cache, base_model, files)
        return self._folders[base_model]

    def base_models(self) -> list[str]:
        """The base models that the server offers.

        Raises:
            ServerError: the server cannot be asked.
        """
        with self._client() as client:
            try:
                answer = client.get("/api/v1/get_server_capabilities").raise_for_status().json()
                return [str(model["model_name"]) for model in answer["supported_models"]]
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                raise ServerError(
                    f"the base models of {self.base_url} could not be listed: {error!r}"
                ) from error

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.base_url,
            headers={"X-API-Key": self._api_key},
            timeout=_TIMEOUT_S,
            transport=self._transport,
        )

    def _fetch(self, base_model: str) -> dict[str, bytes] | None:
        if not _BASE_MODEL_RE.fullmatch(base_model):
            return None
        route = f"/api/v1/tokenizers/{quote(base_model)}"
        with self._client() as client:
            try:
                listing = client.get(route)
                if listing.status_code == 404:
                    return None
                files: dict[str, bytes] = {}
                for name in _file_names(listing.raise_for_status().json()):
                    file = client.get(f"{route}/files/{name}")
                    files[name] = file.raise_for_status().content
                return files
            except (httpx.HTTPError, ValueError) as error:
                raise ServerError(
                    f"the tokenizer of {base_model!r} could not be fetched from "
                    f"{self.base_url}: {error}"
                ) from error


def write_snapshot(cache: Path, base_model: str, files: Mapping[str, bytes]) -> Path:
    """Write the files as the newest snapshot of a base model and return the snapshot's folder.

    A snapshot appears whole or not at all, so processes that start together may all write it.
    """
    repository = cache / f"models--{base_model.replace('/', '--')}"
    digest = _digest(files)
    snapshot = repository / "snapshots" / digest
    if not snapshot.is_dir():
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=snapshot.parent))
        try:
            for name, content in files.items():
                (partial / name).write_bytes(content)
            partial.rename(snapshot)
        except OSError:
            if not snapshot.is_dir():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    if _CONFIG not in files:
        absent = repository / ".no_exist" / digest / _CONFIG
        absent.parent.mkdir(parents=True, exist_ok=True)
        absent.touch()
    ref = repository / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(ref, digest.encode())
    return snapshot


def _digest(files: Mapping[str, bytes]) -> str:
    """40 hexadecimal digits, as Hugging Face names a snapshot."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return whole.hexdigest()[:40]


def _file_names(answer: Any) -> list[str]:
    """The names in a listing, each checked: it becomes a file on the tenant's machine."""
    names = answer.get("files") if isinstance(answer, dict) else None
    if not isinstance(names, list) or not names:
        raise ValueError(f"expected a list of files, got {str(answer)[:200]}")
    for name in names:
        if not isinstance(name, str) or not _FILE_NAME_RE.fullmatch(name):
            raise ValueError(f"file name {name!r} is not allowed")
    return names
