from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from client.builders import serve_tokenizers
from cyclora_client import cli
from cyclora_client.admin import AdminClient
from cyclora_client.admin_cli import shared
from cyclora_client.tokenizers import TokenizerSource
from cyclora_client.up.display import Display
from cyclora_client.up.options import TINY_CHAT, ServedModel, UpOptions
from cyclora_core import __version__

TENANT = {
    "tenant_id": "tenant-1",
    "name": "first",
    "created_at": "2026-01-02T03:04:05+00:00",
    "weight": 1.0,
    "is_enabled": False,
    "disabled_reason": "the invoice is open",
}


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "40", **environment})


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the admin commands talk to a server with this one answer."""

    def use(value: Any, status: int = 200) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            return httpx.Response(status, json=value)

        def make(url: str, key: str) -> AdminClient:
            return AdminClient(url, key, httpx.MockTransport(handler))

        monkeypatch.setattr(shared, "AdminClient", make)

    return use


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[UpOptions]:
    """What ``cyclora up`` would start."""
    options: list[UpOptions] = []

    def run_up(asked: UpOptions, display: Display) -> int:
        options.append(asked)
        return 7

    monkeypatch.setattr(cli, "run_up", run_up)
    return options


def test_version() -> None:
    assert invoke("version").stdout == f"{__version__}\n"


def test_up_serves_the_built_in_model_by_default(started: list[UpOptions]) -> None:
    result = invoke("up")

    assert result.exit_code == 7
    assert started == [UpOptions(Path("data"), base_models=[ServedModel(TINY_CHAT, TINY_CHAT)])]


def test_up_takes_several_base_models(started: list[UpOptions], tmp_path: Path) -> None:
    models = ["--base-model", f"org/a={tmp_path}", "--base-model", "org/b"]
    invoke("up", "--port", "0", "--dtype", "bfloat16", "--threads", "2", *models)

    assert started[0].base_models == [
        ServedModel("org/a", str(tmp_path)),
        ServedModel("org/b", "org/b"),
    ]
    assert (started[0].port, started[0].dtype, started[0].num_threads) == (0, "bfloat16", 2)


def test_up_takes_how_base_weights_are_kept(started: list[UpOptions]) -> None:
    invoke("up", "--base-weights", "int4")

    assert started[0].base_weights == "int4"


def test_up_takes_the_stores_memory_as_people_write_it(started: list[UpOptions]) -> None:
    invoke("up", "--store-memory", "1.5g")

    assert started[0].store_memory_bytes == 3 * 512 * 1024**2


@pytest.mark.parametrize("size", ["much", "4x", "-1g", "10m"])
def test_a_store_memory_that_is_no_size_or_too_little_is_refused(
    started: list[UpOptions], size: str
) -> None:
    result = invoke("up", f"--store-memory={size}")

    assert (result.exit_code, started) == (2, [])
    assert "--store-memory" in result.stderr


@pytest.mark.parametrize("models", [["=path"], ["name="], ["a=x", "a=y"]])
def test_up_refuses_base_models_that_make_no_sense(
    started: list[UpOptions], models: list[str]
) -> None:
    result = invoke("up", *[part for model in models for part in ("--base-model", model)])

    assert (result.exit_code, started) == (2, [])
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("option", [("--dtype", "float8"), ("--base-weights", "int2")])
def test_up_refuses_a_precision_that_no_worker_knows(
    started: list[UpOptions], option: tuple[str, str]
) -> None:
    result = invoke("up", *option)

    assert (result.exit_code, started) == (2, [])
    assert option[1] in result.stderr


def test_up_refuses_a_variable_that_no_process_knows(started: list[UpOptions]) -> None:
    result = invoke("up", CYCLORA_POL_HOLD_S="3")

    assert (result.exit_code, started) == (2, [])
    assert "did you mean CYCLORA_POLL_HOLD_S?" in result.stderr


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("server", "cyclora_server"),
        ("scheduler", "cyclora_scheduler"),
        ("worker", "cyclora_workers"),
    ],
)
def test_a_process_command_becomes_that_process(
    monkeypatch: pytest.MonkeyPatch, command: str, package: str
) -> None:
    calls: list[tuple[str, list[str]]] = []

    def execv(path: str, arguments: list[str]) -> None:
        calls.append((path, arguments))

    monkeypatch.setattr("os.execv", execv)
    invoke(command)

    assert calls == [(sys.executable, [sys.executable, "-m", package])]


def test_tenants_are_a_table_that_cuts_no_identifier(answer: Callable[..., None]) -> None:
    answer({"tenants": [{**TENANT, "name": "long" * 20}]})

    result = invoke("admin", "tenants", "list", CYCLORA_ADMIN_KEY="tml-admin")

    assert result.exit_code == 0
    header, row = result.stdout.splitlines()[0], result.stdout.splitlines()[-1]
    assert header.split() == list(TENANT)
    assert row.split()[:2] == ["tenant-1", "long" * 20]


def test_tables_show_identifiers_as_they_are(answer: Callable[..., None]) -> None:
    """Also where terminals have a picture for a part of them, such as ``:train:``."""
    answer({"tenants": [TENANT | {"name": "0fed:train:0 [bold]:rocket:"}]})

    assert (
        "0fed:train:0 [bold]:rocket:"
        in invoke("admin", "tenants", "list", CYCLORA_ADMIN_KEY="tml-admin").stdout
    )


def test_lists_in_a_cell_are_words_with_commas(answer: Callable[..., None]) -> None:
    key = {
        "key_id": "key-1",
        "tenant_id": "tenant-1",
        "name": "laptop",
        "scopes": ["read", "train"],
        "created_at": TENANT["created_at"],
        "revoked_at": None,
    }
    answer({"keys": [key]})

    assert (
        "read,train"
        in invoke("admin", "keys", "list", CYCLORA_ADMIN_KEY="tml-admin").stdout.split()
    )


def test_workers_are_a_row_each_without_all_that_they_say_of_themselves(
    answer: Callable[..., None],
) -> None:
    worker = {
        "worker_id": "worker-0-1f",
        "base_model": TINY_CHAT,
        "registered_at": TENANT["created_at"],
        "is_alive": True,
        "cycle_id": None,
        "info": {"name": "worker-0", "tokens_per_s": 3194.8, "used_sample_tokens": {"t": 1}},
    }
    answer({"workers": [worker]})

    command = ["admin", "workers", "list", "--admin-key", "tml-admin"]
    head, row = invoke(*command).stdout.splitlines()
    assert head.split()[:3] == ["worker_id", "name", "base_model"]
    assert row.split()[:3] == ["worker-0-1f", "worker-0", TINY_CHAT]
    assert "3194.8" in row
    assert "used_sample_tokens" not in head + row
    assert json.loads(invoke(*command, "--json").stdout)[0]["info"] == worker["info"]


def test_json_is_for_programs(answer: Callable[..., None]) -> None:
    answer(TENANT)

    result = invoke("admin", "tenants", "create", "first", "--json", "--admin-key", "tml-admin")

    assert json.loads(result.stdout) == [TENANT]


def test_an_empty_list_says_so(answer: Callable[..., None]) -> None:
    answer({"workers": []})

    assert invoke("admin", "workers", "list", "--admin-key", "tml-admin").stdout == "none\n"


def test_an_error_is_one_line_and_an_exit_code(answer: Callable[..., None]) -> None:
    answer({"detail": "the API key is unknown"}, 401)

    result = invoke("admin", "keys", "list", "tenant-1", "--admin-key", "tml-wrong")

    assert result.exit_code == 1
    assert result.stderr == "error: the API key is unknown (status 401)\n"


def test_admin_commands_need_a_key() -> None:
    assert invoke("admin", "tenants", "list").exit_code == 2


def test_tokenizers_prints_what_the_plain_sdk_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handler = serve_tokenizers({"cyclora/tiny-chat": {"tokenizer.json": b"{}"}})

    def make(url: str, key: str) -> TokenizerSource:
        return TokenizerSource(url, key, transport=httpx.MockTransport(handler))

    monkeypatch.setattr(cli, "TokenizerSource", make)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    result = invoke("tokenizers", "--api-key", "tml-key")

    cache = tmp_path / "cyclora" / "hub"
    assert result.stdout == f"export HF_HUB_CACHE={cache}\nexport HF_HUB_OFFLINE=1\n"
    assert (cache / "models--cyclora--tiny-chat" / "refs" / "main").exists()


def test_a_server_without_base_models_has_no_tokenizers_to_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(url: str, key: str) -> TokenizerSource:
        return TokenizerSource(url, key, transport=httpx.MockTransport(serve_tokenizers({})))

    monkeypatch.setattr(cli, "TokenizerSource", make)

    result = invoke("tokenizers", "--api-key", "tml-key")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "serves no base model yet" in result.stderr


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "cyclora_client", "version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)

    assert result.stdout == f"{__version__}\n"
