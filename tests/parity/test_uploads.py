"""An adapter trained with plain PEFT goes on here as it would have gone on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoraConfig, OptimStepBody
from cyclora_core.types import BaseModelInfo
from cyclora_server.uploads.peft_config import read_config
from cyclora_server.uploads.receive import Upload, convert
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.checkpoint import load_checkpoint, save_checkpoint
from cyclora_workers.optimizer import optimizer_step
from parity.peft_reference import quiet_peft, reference_loss
from parity.tolerances import AFTER_STEPS, EXPORT, close
from workers.builders import ARCHITECTURES, cross_entropy, item, load, run

FP32 = torch.float32
STEP = OptimStepBody(learning_rate=1e-3, eps=1e-6)
PATH = CheckpointPath(
    "11111111-2222-3333-4444-555555555555:train:0", CheckpointKind.TRAINING, "peft"
)

KINDS: dict[str, dict[str, Any]] = {
    "the usual two": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "every linear": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"},
    "some layers": {"r": 8, "target_modules": ["down_proj"], "layers_to_transform": [1]},
    "unembedding": {"r": 2, "lora_alpha": 7, "target_modules": ["lm_head", "o_proj"]},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": ["up_proj"], "use_rslora": True},
}


class Elsewhere:
    """A plain model with an adapter that PEFT has made, trained and saved."""

    def __init__(self, model: PreTrainedModel, options: dict[str, Any]) -> None:
        torch.manual_seed(5)
        config = PeftLoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **options)
        with quiet_peft():
            self.model: Any = get_peft_model(model, config).eval()
        self.parameters = [each for each in self.model.parameters() if each.requires_grad]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.05)

    def logprobs(self, datum: Any) -> torch.Tensor:
        return _logprobs(self.model, datum)

    def step(self, body: Any) -> None:
        for datum in body.data:
            reference_loss(body, datum, self.logprobs(datum)).backward()
        torch.optim.AdamW(
            self.parameters,
            lr=STEP.learning_rate,
            betas=(STEP.beta1, STEP.beta2),
            eps=STEP.eps,
            weight_decay=0.0,
        ).step()


def _logprobs(model: Any, datum: Any) -> torch.Tensor:
    logits = model(torch.from_numpy(datum.tokens).long()[None]).logits[0].float()
    targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"])
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def uploaded(base_model: BaseModel, saved: Path, folder: Path) -> AdapterState:
    """What the server makes of the saved files, loaded as a worker loads it."""
    info = BaseModelInfo(base_model.name, base_model.vocab_size, 128, [3], "tiny", 1, 64, "/")
    upload = Upload("tenant", PATH, info, base_model.target_modules)
    config = read_config((saved / "adapter_config.json").read_bytes(), 64)
    folder.mkdir()
    (folder / "received.safetensors").write_bytes(
        (saved / "adapter_model.safetensors").read_bytes()
    )
    lora: LoraConfig = convert(folder, config, upload)
    state = AdapterState.empty(base_model, lora)
    load_checkpoint(state, folder, with_optimizer=False)
    return state


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_and_a_training_step_equal_pefts(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    """Compared again through an export, so that every matrix is: also those PEFT does not have."""
    make = ARCHITECTURES[architecture]
    base_model = load(make(), tmp_path / "base")
    elsewhere = Elsewhere(make(), KINDS[kind])
    with quiet_peft():
        elsewhere.model.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=False)
    body, probe = cross_entropy([11, 5], seed=3), cross_entropy([15], seed=4)

    state = uploaded(base_model, tmp_path / "peft", tmp_path / "uploaded")
    before = run(base_model, [item(state, probe, needs_gradient=False)]).results()["r"].logprobs[0]
    expected_before = elsewhere.logprobs(probe.data[0]).detach()
    run(base_model, [item(state, body)])
    optimizer_step(state, STEP)
    elsewhere.step(body)
    after = run(base_model, [item(state, probe, needs_gradient=False)]).results()["r"].logprobs[0]
    save_checkpoint(state, base_model, tmp_path / "export", with_optimizer=False)

    close(torch.from_numpy(before), expected_before, EXPORT[FP32])
    expected_after = elsewhere.logprobs(probe.data[0]).detach()
    assert not torch.allclose(expected_after, expected_before, atol=1e-3)
    close(torch.from_numpy(after), expected_after, AFTER_STEPS[FP32])
    with quiet_peft(), torch.no_grad():
        reloaded: Any = PeftModel.from_pretrained(make(), str(tmp_path / "export"))
        close(_logprobs(reloaded, probe.data[0]), torch.from_numpy(after), EXPORT[FP32])
