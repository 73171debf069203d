"""Checkpoints: read by plain PEFT, whole or not at all, and exact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from core.builders import age_decrypt, age_identity
from cyclora_core.errors import NotFound, UserError
from cyclora_core.operations import LoraConfig, OptimStepBody
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.checkpoint import load_checkpoint, save_checkpoint
from cyclora_workers.optimizer import optimizer_step
from parity.peft_reference import quiet_peft
from parity.tolerances import EXPORT, close
from workers.builders import ARCHITECTURES, cross_entropy, item, load, qwen3, random_adapter, run

STEP = OptimStepBody(learning_rate=1e-2)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(qwen3(), tmp_path_factory.mktemp("base"))


def train(base_model: BaseModel, state: AdapterState, seed: int) -> None:
    run(base_model, [item(state, cross_entropy([9, 4], seed))])
    optimizer_step(state, STEP)


def trained(base_model: BaseModel, **flags: bool) -> AdapterState:
    state = random_adapter(base_model, 4, 0, **flags)
    train(base_model, state, 1)
    return state


def loaded(
    base_model: BaseModel, folder: Path, config: LoraConfig, *, with_optimizer: bool
) -> AdapterState:
    state = AdapterState.empty(base_model, config)
    load_checkpoint(state, folder, with_optimizer=with_optimizer)
    return state


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"train_attn": False},
        {"train_mlp": False},
        {"train_unembed": False},
        {"train_attn": False, "train_mlp": False},
    ],
)
def test_plain_peft_loads_it_and_gives_the_same_logprobs(
    architecture: str, flags: dict[str, bool], tmp_path: Path
) -> None:
    """Among them an adapter on a tied unembedding, which PEFT keeps off the input embedding."""
    base_model = load(ARCHITECTURES[architecture](), tmp_path / "base")
    state = trained(base_model, **flags)
    save_checkpoint(state, base_model, tmp_path / "checkpoint", with_optimizer=True)
    body = cross_entropy([15])
    ours = run(base_model, [item(state, body)]).results()["r"].logprobs[0]

    with quiet_peft():
        model: Any = PeftModel.from_pretrained(
            ARCHITECTURES[architecture](), str(tmp_path / "checkpoint")
        )
    tokens = torch.from_numpy(body.data[0].tokens).long()
    targets = torch.from_numpy(body.data[0].loss_fn_inputs["target_tokens"])
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]

    theirs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    close(torch.from_numpy(ours), theirs, EXPORT[torch.float32])


def test_the_files_hold_what_peft_calls_by_these_names(
    base_model: BaseModel, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"

    num_bytes = save_checkpoint(trained(base_model), base_model, folder, with_optimizer=True)

    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert config["base_model_name_or_path"] == "tests/tiny"
    assert "lm_head" in config["target_modules"]
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert "base_model.model.lm_head.lora_B.weight" in names
    assert len(names) == 2 * len(base_model.target_modules)
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "checkpoint_complete",
    }
    assert num_bytes == sum(file.stat().st_size for file in folder.iterdir())


def test_encrypted_files_are_those_of_a_plain_save_to_each_recipient(
    base_model: BaseModel, tmp_path: Path
) -> None:
    state = trained(base_model)
    readers = [age_identity() for _ in range(2)]
    save_checkpoint(state, base_model, tmp_path / "plain", with_optimizer=False)

    num_bytes = save_checkpoint(
        state,
        base_model,
        tmp_path / "secret",
        with_optimizer=False,
        age_recipients=[str(reader.to_public()) for reader in readers],
    )

    names = {file.name for file in (tmp_path / "secret").iterdir()}
    assert names == {
        "adapter_config.json.age",
        "adapter_model.safetensors.age",
        "checkpoint_complete",
    }
    assert num_bytes == sum(file.stat().st_size for file in (tmp_path / "secret").iterdir())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        secret = (tmp_path / "secret" / f"{name}.age").read_bytes()
        for reader in readers:
            assert age_decrypt(secret, reader) == (tmp_path / "plain" / name).read_bytes()


def test_the_flags_show_in_the_exported_keys(base_model: BaseModel, tmp_path: Path) -> None:
    state = trained(base_model, train_mlp=False, train_unembed=False)

    save_checkpoint(state, base_model, tmp_path / "checkpoint", with_optimizer=False)

    names = load_file(tmp_path / "checkpoint" / "adapter_model.safetensors").keys()
    assert all("self_attn" in name for name in names)
    config = json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert not (tmp_path / "checkpoint" / "optimizer.safetensors").exists()


def test_training_goes_on_bit_for_bit_with_the_optimizer(
    base_model: BaseModel, tmp_path: Path
) -> None:
    state = trained(base_model)
    save_checkpoint(state, base_model, tmp_path / "checkpoint", with_optimizer=True)
    resumed = loaded(base_model, tmp_path / "checkpoint", state.config, with_optimizer=True)
    train(base_model, state, 2)

    train(base_model, resumed, 2)

    after = resumed.export_tensors()
    assert all(torch.equal(after[k], v) for k, v in state.export_tensors().items())


def test_without_the_optimizer_the_weights_are_kept_and_the_rest_is_new(
    base_model: BaseModel, tmp_path: Path
) -> None:
    state = trained(base_model)
    save_checkpoint(state, base_model, tmp_path / "checkpoint", with_optimizer=True)

    resumed = loaded(base_model, tmp_path / "checkpoint", state.config, with_optimizer=False)

    assert torch.equal(resumed.master_P, state.master_P)
    assert torch.equal(resumed.weights.flat_P, state.weights.flat_P)
    assert not resumed.first_moment_P.any()
    assert not resumed.second_moment_P.any()
    assert resumed.num_steps == 0


def test_loading_drops_the_accumulated_gradient(base_model: BaseModel, tmp_path: Path) -> None:
    state = trained(base_model)
    save_checkpoint(state, base_model, tmp_path / "checkpoint", with_optimizer=True)
    run(base_model, [item(state, cross_entropy([5]))])

    load_checkpoint(state, tmp_path / "checkpoint", with_optimizer=True)

    assert not state.gradient_P.any()
    assert state.num_accumulated_passes == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(8), "has lora_rank 4; the model has 8"),
        (LoraConfig(4, train_mlp=False), "has 12 tensors that the model lacks"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(
    base_model: BaseModel, tmp_path: Path, config: LoraConfig, message: str
) -> None:
    save_checkpoint(trained(base_model), base_model, tmp_path / "checkpoint", with_optimizer=True)

    with pytest.raises(UserError, match=message):
        loaded(base_model, tmp_path / "checkpoint", config, with_optimizer=False)


def test_a_checkpoint_of_fewer_modules_is_refused_and_changes_nothing(
    base_model: BaseModel, tmp_path: Path
) -> None:
    fewer = trained(base_model, train_attn=False)
    save_checkpoint(fewer, base_model, tmp_path / "checkpoint", with_optimizer=True)
    state = trained(base_model)
    before = state.export_tensors()

    with pytest.raises(UserError, match="lacks 16 tensors that the model has"):
        load_checkpoint(state, tmp_path / "checkpoint", with_optimizer=True)

    assert all(torch.equal(before[k], v) for k, v in state.export_tensors().items())


def test_a_checkpoint_of_another_base_model_is_refused(
    base_model: BaseModel, tmp_path: Path
) -> None:
    wider = load(qwen3(intermediate_size=64), tmp_path / "base")
    save_checkpoint(trained(wider), wider, tmp_path / "checkpoint", with_optimizer=False)

    with pytest.raises(UserError, match=r"has shape .*; the model needs"):
        loaded(base_model, tmp_path / "checkpoint", LoraConfig(4), with_optimizer=False)


def test_a_sampler_checkpoint_has_no_optimizer_to_load(
    base_model: BaseModel, tmp_path: Path
) -> None:
    save_checkpoint(trained(base_model), base_model, tmp_path / "c", with_optimizer=False)

    with pytest.raises(UserError, match="no optimizer state"):
        loaded(base_model, tmp_path / "c", LoraConfig(4), with_optimizer=True)


def test_an_incomplete_checkpoint_does_not_exist(base_model: BaseModel, tmp_path: Path) -> None:
    save_checkpoint(trained(base_model), base_model, tmp_path / "c", with_optimizer=False)
    (tmp_path / "c" / "checkpoint_complete").unlink()

    for name in ("c", "never"):
        with pytest.raises(NotFound, match=f"no checkpoint '{name}'"):
            loaded(base_model, tmp_path / name, LoraConfig(4), with_optimizer=False)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"]
)
def test_a_damaged_file_is_named(base_model: BaseModel, tmp_path: Path, name: str) -> None:
    save_checkpoint(trained(base_model), base_model, tmp_path / "c", with_optimizer=True)
    whole = (tmp_path / "c" / name).read_bytes()
    (tmp_path / "c" / name).write_bytes(whole[: len(whole) // 2])

    with pytest.raises(UserError, match=f"{name} of the checkpoint is missing or damaged"):
        loaded(base_model, tmp_path / "c", LoraConfig(4), with_optimizer=True)


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_beside_it(
    base_model: BaseModel, tmp_path: Path
) -> None:
    state = trained(base_model)
    save_checkpoint(state, base_model, tmp_path / "c", with_optimizer=True)
    train(base_model, state, 2)

    save_checkpoint(state, base_model, tmp_path / "c", with_optimizer=False)

    found = loaded(base_model, tmp_path / "c", state.config, with_optimizer=False)
    assert torch.equal(found.master_P, state.master_P)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_a_save_that_fails_leaves_the_old_checkpoint(
    base_model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained(base_model)
    save_checkpoint(state, base_model, tmp_path / "c", with_optimizer=True)
    expected_P = state.master_P.clone()
    train(base_model, state, 2)

    def disk_full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(state, base_model, tmp_path / "c", with_optimizer=True)

    found = loaded(base_model, tmp_path / "c", state.config, with_optimizer=True)
    assert torch.equal(found.master_P, expected_P)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_files_are_fp32_even_when_the_base_model_is_not(tmp_path: Path) -> None:
    base_model = load(qwen3(), tmp_path / "base", torch.bfloat16)
    state = trained(base_model)

    save_checkpoint(state, base_model, tmp_path / "c", with_optimizer=True)

    for name in ("adapter_model", "optimizer"):
        tensors = load_file(tmp_path / "c" / f"{name}.safetensors")
        floats = {t.dtype for t in tensors.values() if t.is_floating_point()}
        assert floats == {torch.float32}
    found = loaded(base_model, tmp_path / "c", state.config, with_optimizer=True)
    np.testing.assert_array_equal(found.master_P.numpy(), state.master_P.numpy())
