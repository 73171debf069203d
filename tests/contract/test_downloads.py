"""Adapters leave through the official SDK and its command line, and load in plain PEFT."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from contract.builders import datum, logprobs, train
from contract.command_line import has_succeeded
from contract.conftest import Running
from core.builders import age_decrypt, age_identity
from cyclora_workers.tiny_chat import model_dir
from parity.peft_reference import quiet_peft

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}


def fetch(url: str) -> bytes:
    """As the SDK's command line and tinker-cookbook do: no header of ours."""
    with urllib.request.urlopen(url, timeout=60) as response:
        data = response.read()
        assert int(response.headers["Content-Length"]) == len(data)
    return data


def tinker_cli(up: Running, folder: Path, *arguments: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TINKER_BASE_URL": up.base_url,
        "TINKER_API_KEY": up.api_key("tenant"),
        "HOME": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tinker.cli", "--format", "json", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert has_succeeded(done), done.stderr
    return json.loads(done.stdout)


def plain_logprobs(adapter: Path) -> list[float]:
    """Of the targets of ``datum()``, by transformers and PEFT alone."""
    one = datum()
    tokens = torch.tensor(one.model_input.to_ints())
    targets = torch.tensor(one.loss_fn_inputs["target_tokens"].data)
    with quiet_peft(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(base, str(adapter))
        logits = model(tokens[None]).logits[0].float()
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].tolist()


def trained(new_model: NewModel) -> tuple[tinker.TrainingClient, list[float]]:
    model = new_model()
    train(model, [datum()], 3)
    [found] = logprobs(model.forward([datum()], "cross_entropy").result())
    return model, found


def test_an_export_is_listed_and_fetched_by_signed_urls(up: Running, new_model: NewModel) -> None:
    model, _ = trained(new_model)
    path = model.save_weights_external("hf", ttl_seconds=3600).result().path
    assert path == f"tinker://{model.model_id}/external_weights/hf"

    response = up.rest().get_external_weights_urls(path).result()

    assert response.expires > datetime.now(UTC)
    assert set(response.urls) == ADAPTER_FILES
    sizes = {name: len(fetch(url)) for name, url in response.urls.items()}
    [listed] = up.rest().list_checkpoints(model.model_id).result().checkpoints
    assert listed.checkpoint_type == "external"
    assert listed.size_bytes == sum(sizes.values())
    assert listed.expires_at is not None


def test_the_command_line_downloads_an_export_that_plain_peft_loads(
    up: Running, new_model: NewModel, tmp_path: Path
) -> None:
    model, ours = trained(new_model)
    path = model.save_weights_external("for-the-cli").result().path

    tinker_cli(up, tmp_path, "checkpoint", "download", path, "--output", str(tmp_path))

    [folder] = [file.parent for file in tmp_path.rglob("adapter_config.json")]
    assert {file.name for file in folder.iterdir()} == ADAPTER_FILES
    assert plain_logprobs(folder) == pytest.approx(ours, abs=1e-5, rel=1e-5)


def test_the_command_line_downloads_a_training_checkpoint_and_leaves_no_export_behind(
    up: Running, new_model: NewModel, tmp_path: Path
) -> None:
    model, ours = trained(new_model)
    path = model.save_state("for-the-cli").result().path
    before = up.rest().list_user_checkpoints().result().cursor

    tinker_cli(up, tmp_path, "checkpoint", "download", path, "--output", str(tmp_path))

    [folder] = [file.parent for file in tmp_path.rglob("adapter_config.json")]
    assert plain_logprobs(folder) == pytest.approx(ours, abs=1e-5, rel=1e-5)
    after = up.rest().list_user_checkpoints().result().cursor
    assert before is not None
    assert after is not None
    assert after.total_count == before.total_count


def test_a_training_checkpoint_leaves_encrypted_to_one_recipient(
    up: Running, service: tinker.ServiceClient, new_model: NewModel, tmp_path: Path
) -> None:
    """What tinker-cookbook's weights.download does, request by request."""
    model, ours = trained(new_model)
    path = model.save_state("encrypted").result().path
    identity = age_identity()

    export = (
        service.create_training_client_from_state(path)
        .result()
        .save_weights_external(
            "download", ttl_seconds=3600, age_encryption_recipients=[str(identity.to_public())]
        )
        .result()
        .path
    )
    urls = up.rest().get_external_weights_urls(export).result().urls
    up.rest().set_checkpoint_ttl_from_tinker_path(export, 3600).result()
    for name, url in urls.items():
        assert name.endswith(".age")
        (tmp_path / name.removesuffix(".age")).write_bytes(age_decrypt(fetch(url), identity))
    up.rest().delete_checkpoint_from_tinker_path(export).result()

    assert plain_logprobs(tmp_path) == pytest.approx(ours, abs=1e-5, rel=1e-5)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(next(iter(urls.values())))


def test_recipients_that_are_no_keys_are_named(new_model: NewModel) -> None:
    model = new_model()

    with pytest.raises(tinker.RequestFailedError, match=r"'age1no'.*no public key"):
        model.save_weights_external("x", age_encryption_recipients=["age1no"]).result()

    assert train(model, [datum()], 1)[0] > 0


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_older_sdks_are_led_to_an_archive_that_plain_peft_loads(
    up: Running, new_model: NewModel, tmp_path: Path, kind: str
) -> None:
    model, ours = trained(new_model)
    if kind == "weights":
        model.save_state("old").result()
    else:
        model.save_weights_for_sampler("old").result()

    answer = httpx.get(
        f"{up.base_url}/api/v1/training_runs/{model.model_id}/checkpoints/{kind}/old/archive",
        headers={"X-API-Key": up.api_key("tenant"), "X-Stainless-Package-Version": "0.25.0"},
    )

    assert answer.status_code == 302
    with tarfile.open(fileobj=io.BytesIO(fetch(answer.headers["Location"]))) as tar:
        assert set(tar.getnames()) == {*ADAPTER_FILES, "checkpoint_complete"}
        tar.extractall(tmp_path, filter="data")
    assert plain_logprobs(tmp_path) == pytest.approx(ours, abs=1e-5, rel=1e-5)


def test_a_stranger_gets_no_urls(up: Running, new_model: NewModel) -> None:
    model = new_model()
    path = model.save_weights_external("private").result().path

    with pytest.raises(tinker.NotFoundError):
        up.rest("stranger").get_external_weights_urls(path).result()
