"""Every command of the `tinker` command line, as a user types it, against a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import tinker
from tinker.cli.__main__ import main_cli

from contract.builders import datum, train
from contract.command_line import has_succeeded
from contract.conftest import BASE_MODEL, Running, run_up

pytestmark = [pytest.mark.contract, pytest.mark.slow]

TINKER = (sys.executable, "-m", "tinker.cli")
TENANT = "command line"

EXERCISED = {
    "auth login",
    "auth logout",
    "auth status",
    "auth whoami",
    "billing checkpoint-storage",
    "billing usage",
    "checkpoint delete",
    "checkpoint info",
    "checkpoint list",
    "checkpoint publish",
    "checkpoint set-ttl",
    "checkpoint unpublish",
    "model list",
    "run info",
    "run list",
    "session export-trace",
    "version",
}
ELSEWHERE = {
    "checkpoint download": "with external weights",
    "checkpoint push-hf": "uploads to the Hugging Face hub, which no test reaches",
}


class Cli:
    """The command line of one user, with a home of their own."""

    def __init__(self, running: Running, home: Path, api_key: str | None) -> None:
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TINKER_BASE_URL": running.base_url,
            "TINKER_TELEMETRY": "0",
            "COLUMNS": "400",
        }
        if api_key is not None:
            self._environment["TINKER_API_KEY"] = api_key

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TINKER, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=120,
            check=False,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Standard output of a command that succeeds."""
        done = self.run(*arguments, stdin=stdin)
        assert has_succeeded(done), f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self("-f", "json", *arguments))


@pytest.fixture
def cli(up: Running, tmp_path: Path) -> Cli:
    return Cli(up, tmp_path, up.api_key(TENANT))


@pytest.fixture(scope="module")
def model(up: Running) -> tinker.TrainingClient:
    """A model of the user's that was trained and saved; tests may add to it, and take nothing."""
    return trained(up)


def trained(up: Running) -> tinker.TrainingClient:
    made = up.service(TENANT).create_lora_training_client(BASE_MODEL, rank=4).result()
    train(made, [datum()], 2)
    made.save_state("state", user_metadata={"step": "2"}).result()
    made.save_weights_for_sampler("sampler").result()
    return made


def test_every_command_is_exercised_here_or_named_with_a_reason() -> None:
    def names(group: click.Group, prefix: str = "") -> Iterator[str]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                yield from names(command, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}"

    assert set(names(main_cli)) == EXERCISED | ELSEWHERE.keys()


def test_version(cli: Cli) -> None:
    assert tinker.__version__ in cli("version")


def test_a_user_logs_in_with_a_pasted_key_works_and_logs_out(up: Running, tmp_path: Path) -> None:
    cli = Cli(up, tmp_path, None)
    key = up.api_key(TENANT)
    assert cli.run("auth", "status").returncode != 0

    assert TENANT in cli("auth", "login", stdin=f"{key}\n")
    assert "Tinker accessible: yes" in cli("auth", "status")
    assert cli.json("model", "list")["models"][0]["model_name"] == BASE_MODEL
    assert "still active" in cli("auth", "logout")
    assert cli.run("auth", "status").returncode != 0


def test_a_wrong_key_is_refused_at_the_login(up: Running, tmp_path: Path) -> None:
    done = Cli(up, tmp_path, None).run("auth", "login", stdin="tml-wrong\n")

    assert done.returncode != 0
    assert "unknown or was revoked" in done.stdout + done.stderr


def test_logging_out_revokes_a_key_that_was_made_for_the_command_line(
    up: Running, tmp_path: Path
) -> None:
    with up.admin() as admin:
        tenant = admin.tenants.create("generated")
        key = admin.keys.create(tenant.tenant_id, "cli").api_key
    details = {"org_details": {"name": "generated"}, "user_details": {"email": ""}}
    record = {"type": "generated", "key": key, "name": "cli", "details": details}
    folder = tmp_path / ".tinker"
    folder.mkdir()
    content = {"version": 1, "default": "1", "keys": {"1": record}}
    (folder / "credentials.json").write_text(json.dumps(content))

    assert "deleted its API key on the server" in Cli(up, tmp_path, None)("auth", "logout")

    assert Cli(up, tmp_path, key).run("auth", "status").returncode != 0


def test_whoami_needs_tokens_and_says_so(cli: Cli) -> None:
    done = cli.run("auth", "whoami")

    assert done.returncode != 0
    assert "JWT auth" in done.stdout + done.stderr


def test_models_are_listed_and_filtered(cli: Cli) -> None:
    assert BASE_MODEL in cli("model", "list")
    assert cli.json("model", "list", "TINY")["models"][0]["trainable"] is True


def test_runs_are_listed_and_shown(cli: Cli, model: tinker.TrainingClient) -> None:
    listed = cli.json("run", "list", "--limit", "0")
    shown = cli.json("run", "info", model.model_id)

    assert model.model_id in {each["training_run_id"] for each in listed["runs"]}
    assert shown["training_run_id"] == model.model_id
    assert model.model_id in cli("run", "list", "-c", "id,model,owner,lora,updated,status")
    assert "rank" in cli("run", "info", model.model_id).lower()


def test_checkpoints_are_listed_and_shown(cli: Cli, model: tinker.TrainingClient) -> None:
    of_run = cli.json("checkpoint", "list", "--run-id", model.model_id)
    every = cli.json("checkpoint", "list", "--limit", "0")
    path = f"tinker://{model.model_id}/weights/state"

    names = {each["checkpoint_id"] for each in of_run["checkpoints"]}
    assert names >= {"weights/state", "sampler_weights/sampler"}
    assert path in {each["tinker_path"] for each in every["checkpoints"]}
    assert cli.json("checkpoint", "info", path)["tinker_path"] == path
    assert "state" in cli("checkpoint", "list")


def test_a_checkpoint_is_published_and_taken_back(cli: Cli, model: tinker.TrainingClient) -> None:
    path = f"tinker://{model.model_id}/weights/state"

    def is_public() -> bool:
        return cli.json("checkpoint", "info", path)["public"]

    cli("checkpoint", "publish", path)
    published = is_public()
    cli("checkpoint", "unpublish", path)

    assert [published, is_public()] == [True, False]


def test_a_checkpoint_gets_a_lifetime_and_loses_it(cli: Cli, model: tinker.TrainingClient) -> None:
    path = f"tinker://{model.model_id}/weights/state"

    def expires_at() -> str | None:
        return cli.json("checkpoint", "info", path)["expires_at"]

    cli("checkpoint", "set-ttl", path, "--ttl", "7200")
    with_ttl = expires_at()
    cli("checkpoint", "set-ttl", path, "--remove")

    assert with_ttl is not None
    assert expires_at() is None
    assert cli.run("checkpoint", "set-ttl", path, "--ttl", "60").returncode != 0


def test_checkpoints_are_deleted_by_path_and_by_run(cli: Cli, up: Running) -> None:
    model = trained(up)
    paths = [model.save_state(name).result().path for name in ("d1", "d2")]
    run = ["--run-id", model.model_id]
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()

    cli("checkpoint", "delete", *paths, "--yes")
    left = cli.json("checkpoint", "list", *run)["checkpoints"]
    assert not {each["tinker_path"] for each in left} & set(paths)
    old = cli("checkpoint", "delete", *run, "--before", "2020-01-01", "--yes")
    assert "No checkpoints found" in old
    cli(*("checkpoint", "delete", *run), "--type", "sampler_weights", "--before", tomorrow, "--yes")

    left = cli.json("checkpoint", "list", *run)["checkpoints"]
    assert {each["checkpoint_type"] for each in left} == {"training"}


def test_usage_is_shown_by_hour(cli: Cli, model: tinker.TrainingClient, tmp_path: Path) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    window = [each.isoformat() for each in (hour - timedelta(hours=1), hour + timedelta(hours=1))]
    rows, sessions = tmp_path / "rows.csv", tmp_path / "sessions.csv"

    usage = cli.json("billing", "usage", *window)
    cli("billing", "usage", *window, "--csv", str(rows), "--sessions-csv", str(sessions))

    kinds = {each["event_info"]["type"] for each in usage["data"]}
    assert {"training", "checkpoint", "storage"} <= kinds
    session_id = model.model_id.partition(":")[0]
    assert session_id in usage["sessions"]
    assert session_id in rows.read_text()
    assert session_id in sessions.read_text()
    assert "training" in cli("billing", "usage", *window)


def test_a_window_that_cannot_be_is_explained(cli: Cli) -> None:
    done = cli.run("billing", "usage", "2026-01-01T00:30:00Z", "2026-01-02T00:00:00Z")

    assert done.returncode != 0
    assert "full hours" in done.stdout + done.stderr


def test_storage_is_shown_by_project(cli: Cli, model: tinker.TrainingClient) -> None:
    assert model.model_id
    [row] = cli.json("billing", "checkpoint-storage")["data"]

    assert row["project_id"] == "default"
    assert row["checkpoint_count"] >= 1
    assert row["size_bytes"] > 0
    assert cli.json("billing", "checkpoint-storage", "--project-id", "none")["data"] == []
    assert "default" in cli("billing", "checkpoint-storage")


def test_a_sessions_trace_is_downloaded(
    cli: Cli, model: tinker.TrainingClient, tmp_path: Path
) -> None:
    session_id = model.model_id.partition(":")[0]
    file = tmp_path / "trace.pftrace"

    cli("session", "export-trace", session_id, "-o", str(file))
    url = cli("session", "export-trace", session_id, "--url-only").strip()

    names = {each["name"] for each in json.loads(file.read_text())["traceEvents"]}
    assert {"process_name", "create_model", "forward_backward", "optim_step", "queued"} <= names
    assert any(name.startswith("running in cycle") for name in names)
    assert url.startswith("http://")


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_up(
        tmp_path_factory.mktemp("tokens") / "data", variables={"CYCLORA_TOKEN_AUTH": "true"}
    ) as running:
        yield running


def test_whoami_tells_user_and_organization(with_tokens: Running, tmp_path: Path) -> None:
    cli = Cli(with_tokens, tmp_path, with_tokens.api_key(TENANT))

    told = cli.json("auth", "whoami")

    assert told["user_urn"].startswith("tml:organization_user:tenant-")
    assert told["org_urn"].startswith("tml:organization:tenant-")
    assert told["email"] is None
    assert "Organization" in cli("auth", "whoami")
    missing = cli.run("model", "list", "nothing-like-it")
    assert told["org_urn"] in missing.stdout + missing.stderr


def test_a_training_client_works_with_tokens(with_tokens: Running) -> None:
    service = with_tokens.service(TENANT)
    model = service.create_lora_training_client(BASE_MODEL, rank=4).result()

    losses = train(model, [datum()], 2)

    assert losses[1] < losses[0]
    assert with_tokens.rest(TENANT).whoami().result().email is None
    service.close("success").result()
