from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from client.builders import serve_tokenizers, tokenizer_files
from cyclora_client.tokenizers import TokenizerSource, offline_environment, write_snapshot
from cyclora_core.errors import ServerError

BASE_MODEL = "cyclora/tiny-chat"
KEY = "tml-key"

# The lookup as the plain SDK does it, by name.
LOOKUP = """
import json, sys
from transformers.models.auto.tokenization_auto import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], fast=True)
print(json.dumps(tokenizer.encode("hello world")))
"""


def source(
    cache: Path, handler: Callable[[httpx.Request], httpx.Response], base_url: str = "http://server"
) -> TokenizerSource:
    return TokenizerSource(base_url, KEY, cache, httpx.MockTransport(handler))


def test_files_are_fetched_once_with_the_key(tmp_path: Path) -> None:
    requests: list[httpx.Request] = []
    serve = serve_tokenizers({BASE_MODEL: {"tokenizer.json": b"{}"}})

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return serve(request)

    tokenizers = source(tmp_path, handler, "http://server/prefix/")
    folders = {tokenizers.folder(BASE_MODEL), tokenizers.folder(BASE_MODEL)}

    assert [request.url.path for request in requests] == [
        "/prefix/api/v1/tokenizers/cyclora/tiny-chat",
        "/prefix/api/v1/tokenizers/cyclora/tiny-chat/files/tokenizer.json",
    ]
    assert {request.headers["x-api-key"] for request in requests} == {KEY}
    (folder,) = folders
    assert folder is not None
    assert (folder / "tokenizer.json").read_bytes() == b"{}"


def test_a_base_model_the_server_does_not_know_has_no_folder(tmp_path: Path) -> None:
    assert source(tmp_path, serve_tokenizers({})).folder("Qwen/Qwen3-0.6B") is None


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "/etc/passwd"])
def test_a_file_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """The server's answer becomes files on the machine of whoever connects."""
    tokenizers = source(tmp_path, serve_tokenizers({BASE_MODEL: {name: b"x"}}))

    with pytest.raises(ServerError, match="not allowed"):
        tokenizers.folder(BASE_MODEL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "../..", "/tmp/x", "a//b", "org/../x"])
def test_a_base_model_that_is_no_name_is_not_asked_for(tmp_path: Path, name: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    assert source(tmp_path, handler).folder(name) is None


def test_a_server_that_fails_is_a_clear_error(tmp_path: Path) -> None:
    tokenizers = source(tmp_path, lambda request: httpx.Response(500))

    with pytest.raises(ServerError, match="could not be fetched from http://server"):
        tokenizers.folder(BASE_MODEL)


def test_base_models_are_what_the_server_offers(tmp_path: Path) -> None:
    tokenizers = source(tmp_path, serve_tokenizers({BASE_MODEL: {}}))

    assert tokenizers.base_models() == [BASE_MODEL]


def test_equal_files_share_a_snapshot_and_new_ones_become_main(tmp_path: Path) -> None:
    first = write_snapshot(tmp_path, BASE_MODEL, {"tokenizer.json": b"1"})
    again = write_snapshot(tmp_path, BASE_MODEL, {"tokenizer.json": b"1"})
    other = write_snapshot(tmp_path, BASE_MODEL, {"tokenizer.json": b"2"})

    main = tmp_path / "models--cyclora--tiny-chat" / "refs" / "main"
    assert first == again
    assert main.read_text() == other.name != first.name
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, other.name])


@pytest.mark.slow
@pytest.mark.parametrize("with_config", [True, False])
def test_the_plain_lookup_by_name_works_from_our_folder_alone(
    tmp_path: Path, with_config: bool
) -> None:
    files = tokenizer_files()
    if with_config:
        files["config.json"] = json.dumps({"model_type": "qwen3"}).encode()
    write_snapshot(tmp_path, BASE_MODEL, files)

    result = subprocess.run(
        [sys.executable, "-c", LOOKUP, BASE_MODEL],
        env={**os.environ, **offline_environment(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert result.stdout.strip() == "[1, 2]", result.stderr
