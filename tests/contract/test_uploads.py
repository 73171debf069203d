"""An adapter trained elsewhere is uploaded, and used with the official SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from peft import LoraConfig, get_peft_model
from tinker import types
from transformers import AutoModelForCausalLM

from contract.builders import datum, logprobs, tokens, train
from contract.conftest import BASE_MODEL, Running
from cyclora_client.adapters import upload_adapter
from cyclora_core.errors import UserError
from cyclora_workers.tiny_chat import model_dir
from parity.peft_reference import quiet_peft

pytestmark = pytest.mark.contract


def made_elsewhere(folder: Path) -> list[float]:
    """Save an adapter with plain PEFT; returns its logprobs of the targets of ``datum()``."""
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    one = datum()
    targets = torch.tensor(one.loss_fn_inputs["target_tokens"].data)
    with quiet_peft(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
        model: Any = get_peft_model(base, config).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
        logits = model(torch.tensor(one.model_input.to_ints())[None]).logits[0]
        model.save_pretrained(str(folder))
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].tolist()


def test_an_uploaded_adapter_is_trained_on_and_sampled(
    up: Running, service: tinker.ServiceClient, tmp_path: Path
) -> None:
    expected = made_elsewhere(tmp_path)

    path = upload_adapter(
        tmp_path, BASE_MODEL, name="peft", base_url=up.base_url, api_key=up.api_key("tenant")
    )

    model = service.create_training_client_from_state(path).result()
    assert model.get_info().lora_rank == 4
    [found] = logprobs(model.forward([datum()], "cross_entropy").result())
    assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    sampler = service.create_sampling_client(model_path=path).result()
    prompt = types.ModelInput.from_ints(tokens(13))
    assert sampler.compute_logprobs(prompt).result()[1:] == pytest.approx(
        expected, abs=1e-4, rel=1e-4
    )
    losses = train(model, [datum()], 4)
    assert losses[-1] < losses[0]
    again = model.save_state("trained-further").result().path
    resumed = service.create_training_client_from_state_with_optimizer(again).result()
    assert train(resumed, [datum()], 1) == train(model, [datum()], 1)


def test_an_upload_is_listed_as_a_run_of_its_tenant_only(up: Running, tmp_path: Path) -> None:
    made_elsewhere(tmp_path)
    path = upload_adapter(
        tmp_path, BASE_MODEL, base_url=up.base_url, api_key=up.api_key("uploader")
    )

    [run] = up.rest("uploader").list_training_runs().result().training_runs

    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path
    assert run.base_model == BASE_MODEL
    with pytest.raises(tinker.NotFoundError):
        up.rest("stranger").get_training_run(run.training_run_id).result()


def test_the_command_line_uploads(up: Running, tmp_path: Path) -> None:
    made_elsewhere(tmp_path)
    environment = {
        **os.environ,
        "TINKER_BASE_URL": up.base_url,
        "TINKER_API_KEY": up.api_key("tenant"),
    }
    command = [sys.executable, "-m", "cyclora_client", "adapters", "upload", str(tmp_path)]

    done = subprocess.run(
        [*command, "--base-model", BASE_MODEL, "--name", "cli"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/weights/cli")


def test_what_cannot_be_served_is_refused_by_name(up: Running, tmp_path: Path) -> None:
    made_elsewhere(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": false', '"use_dora": true'))

    with pytest.raises(UserError, match="use_dora = true"):
        upload_adapter(tmp_path, BASE_MODEL, base_url=up.base_url, api_key=up.api_key("tenant"))
