"""Every loss as an SDK user meets it, against plain transformers, PEFT and autograd.

The gradient is read off exported adapters: with these parameters AdamW subtracts it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tinker import types
from torch import Tensor
from transformers import AutoModelForCausalLM

from contract.conftest import Running
from cyclora_workers.tiny_chat import model_dir
from parity.peft_reference import quiet_peft
from parity.tolerances import LOSS, Tolerance, close

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]
LENGTHS = (11, 1, 30, 8)
SGD = types.AdamParams(learning_rate=1e9, beta1=0.0, beta2=0.0, eps=1e9)
"""w -= lr * g / (|g| + eps), where |g| vanishes beside eps = lr."""

DEFAULTS = {
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "gspo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
}


def reference_loss(
    loss_fn: str, config: dict[str, float], logprobs: Tensor, inputs: dict[str, Tensor]
) -> Tensor:
    """The published formulas; logprobs [N], or [N, K] for top-K targets."""
    config = {**DEFAULTS.get(loss_fn, {}), **config}
    if loss_fn == "cross_entropy":
        return -(logprobs * inputs["weights"]).sum()
    advantages, sampled = inputs["advantages"], inputs["logprobs"]
    ratio = (logprobs - sampled).exp()
    if loss_fn == "importance_sampling":
        return -(ratio * advantages).sum()
    if loss_fn == "dro":
        penalty = config["beta"] / 2 * (logprobs - sampled) ** 2
        return -(logprobs * advantages - penalty).sum()
    if loss_fn == "gspo":
        chosen = inputs["sequence_ratio_mask"] != 0
        mean = (logprobs.detach() - sampled)[chosen].mean()
        ratio = (mean + logprobs - logprobs.detach()).exp()
    low = inputs.get("clip_low_threshold", torch.tensor(config["clip_low_threshold"]))
    high = inputs.get("clip_high_threshold", torch.tensor(config["clip_high_threshold"]))
    clipped = torch.clamp(ratio, low, high)
    if loss_fn == "cispo":
        return -(clipped.detach() * logprobs * advantages).sum()
    return -torch.minimum(ratio * advantages, clipped * advantages).sum()


class Reference:
    """The built-in model with an exported adapter, in fp32."""

    def __init__(self, folder: Path) -> None:
        plain = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
        with quiet_peft():
            self.model: Any = PeftModel.from_pretrained(plain, str(folder), is_trainable=True)
        self.model.eval()

    def logprobs(self, datum: types.Datum) -> Tensor:
        logits = self.model(torch.tensor([datum.model_input.to_ints()])).logits[0]
        targets = datum.loss_fn_inputs["target_tokens"].to_torch().to_dense()
        found = logits.log_softmax(-1).gather(1, targets.reshape(len(targets), -1))
        return found.view(targets.shape)

    def gradients(self) -> dict[str, Tensor]:
        """By the names of the exported file."""
        return {
            name.replace(".default.", "."): parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }


def exported(up: Running, model: tinker.TrainingClient, name: str) -> Path:
    """The PEFT folder of the model's present weights."""
    model.save_weights_for_sampler(name).result()
    folder = up.folder / "storage" / "checkpoints" / model.model_id / "sampler_weights" / name
    (revision,) = folder.iterdir()
    return revision


def random_tokens(rng: np.random.Generator, *shape: int) -> Any:
    return rng.integers(10, 500, shape)


def one_target(rng: np.random.Generator, length: int, logprobs: Any) -> dict[str, Any]:
    weights = rng.normal(size=length) * (rng.random(length) < 0.8)
    return {"target_tokens": random_tokens(rng, length), "weights": weights.astype(np.float32)}


def top_k(form: str) -> Callable[..., dict[str, Any]]:
    def make(rng: np.random.Generator, length: int, logprobs: Any) -> dict[str, Any]:
        shape = (length, int(rng.integers(1, 6)))
        kept = rng.random(shape) < 0.3  # sparse enough for the SDK to send rows of what is not 0
        targets = random_tokens(rng, *shape) * kept
        weights = (rng.normal(size=shape) * kept).astype(np.float32)
        if form == "lists":
            return {"target_tokens": targets.tolist(), "weights": weights.tolist()}
        if form == "torch":
            targets, weights = torch.from_numpy(targets), torch.from_numpy(weights)
        return {"target_tokens": targets, "weights": weights}

    return make


def policy(*own: str, has_mask: bool = False) -> Callable[..., dict[str, Any]]:
    """Sampler logprobs near the model's, so that ratios fall on both sides of thresholds."""
    bounds = {"clip_low_threshold": (0.5, 0.9), "clip_high_threshold": (0.9, 1.3)}

    def make(rng: np.random.Generator, length: int, logprobs: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "target_tokens": random_tokens(rng, length),
            "advantages": rng.normal(size=length).tolist(),
        }
        for key in own:
            given[key] = rng.uniform(*bounds[key], length).tolist()
        if has_mask:
            given["sequence_ratio_mask"] = [*(rng.random(length - 1) < 0.7).astype(float), 1.0]
        given["logprobs"] = (logprobs(given["target_tokens"]) + rng.normal(0, 0.4, length)).tolist()
        return given

    return make


LOW, HIGH = "clip_low_threshold", "clip_high_threshold"
CASES: dict[str, tuple[str, dict[str, float], Callable[..., dict[str, Any]]]] = {
    "cross_entropy": ("cross_entropy", {}, one_target),
    "top-K dense": ("cross_entropy", {}, top_k("numpy")),
    "top-K sparse": ("cross_entropy", {}, top_k("torch")),
    "top-K lists": ("cross_entropy", {}, top_k("lists")),
    "importance_sampling": ("importance_sampling", {}, policy()),
    "ppo": ("ppo", {}, policy()),
    "ppo config": ("ppo", {LOW: 0.9, HIGH: 1.5}, policy()),
    "ppo per token": ("ppo", {}, policy(LOW, HIGH)),
    "ppo one side per token": ("ppo", {LOW: 0.4}, policy(HIGH)),
    "cispo": ("cispo", {}, policy()),
    "cispo config": ("cispo", {LOW: 0.8, HIGH: 1.1}, policy()),
    "cispo per token": ("cispo", {}, policy(LOW, HIGH)),
    "dro": ("dro", {}, policy()),
    "dro config": ("dro", {"beta": 1.5}, policy()),
    "gspo": ("gspo", {}, policy(has_mask=True)),
    "gspo config": ("gspo", {LOW: 0.98, HIGH: 1.02}, policy(has_mask=True)),
    "gspo per token": ("gspo", {}, policy(LOW, HIGH, has_mask=True)),
}


@pytest.fixture(scope="module")
def start(up: Running) -> str:
    """A state whose B is not zero, so that every matrix has a gradient."""
    model = up.service().create_lora_training_client("cyclora/tiny-chat", rank=4, seed=1).result()
    rng = np.random.default_rng(0)
    for _ in range(2):
        data = [
            types.Datum(
                model_input=types.ModelInput.from_ints(random_tokens(rng, 20).tolist()),
                loss_fn_inputs=one_target(rng, 20, None),
            )
        ]
        model.forward_backward(data, "cross_entropy")
        model.optim_step(types.AdamParams(learning_rate=2e-2))
    return model.save_state("start").result().path


def make_data(reference: Reference, make: Callable[..., dict[str, Any]]) -> list[types.Datum]:
    data: list[types.Datum] = []
    for index, length in enumerate(LENGTHS):
        rng = np.random.default_rng(index)
        tokens = types.ModelInput.from_ints(random_tokens(rng, length).tolist())

        def logprobs(targets: Any, tokens: types.ModelInput = tokens) -> Any:
            asked = types.Datum(model_input=tokens, loss_fn_inputs={"target_tokens": targets})
            return reference.logprobs(asked).detach().numpy()

        inputs = make(rng, length, logprobs)
        data.append(types.Datum(model_input=tokens, loss_fn_inputs=inputs))
    return data


def backward(
    reference: Reference, data: Sequence[types.Datum], loss_fn: str, config: dict[str, float]
) -> tuple[float, list[Tensor]]:
    total, found = 0.0, list[Tensor]()
    for datum in data:
        logprobs = reference.logprobs(datum)
        inputs = {key: each.to_torch().to_dense() for key, each in datum.loss_fn_inputs.items()}
        loss = reference_loss(loss_fn, config, logprobs, inputs)
        loss.backward()
        total += loss.item()
        found.append(logprobs.detach())
    return total, found


def check_moved_by(
    before: Path, after: Path, gradients: dict[str, Tensor], factor: float = 1.0
) -> None:
    """Weights moved by the gradient, compared in units of its largest element."""
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (before, after))
    assert gradients.keys() == old.keys()
    largest = factor * max(each.abs().max().item() for each in gradients.values())
    assert largest > 0.05
    for name, theirs in gradients.items():
        ours = (old[name] - new[name]) / largest
        close(ours, theirs * factor / largest, Tolerance(0.0, LOSS[torch.float32].atol))


@pytest.mark.parametrize("name", CASES)
def test_value_logprobs_and_gradient_are_those_of_pytorch(
    up: Running, start: str, name: str
) -> None:
    loss_fn, config, make = CASES[name]
    model: Any = up.service().create_training_client_from_state(start).result()
    before = exported(up, model, "before")
    reference = Reference(before)
    data = make_data(reference, make)
    form = {each.loss_fn_inputs["target_tokens"].sparse_crow_indices is None for each in data}
    assert (False in form) == (name == "top-K sparse")

    output = model.forward_backward(data, loss_fn, config or None).result()
    model.optim_step(SGD).result()

    total, logprobs = backward(reference, data, loss_fn, config)
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-5, abs=1e-4)
    for ours, theirs in zip(output.loss_fn_outputs, logprobs, strict=True):
        found = ours["logprobs"].to_torch()
        assert found.shape == theirs.shape
        close(found, theirs, LOSS[torch.float32])
    check_moved_by(before, exported(up, model, "after"), reference.gradients())


def test_clipping_scales_the_gradient_and_the_norm_told_is_the_one_before(
    up: Running, start: str
) -> None:
    model = up.service().create_training_client_from_state(start).result()
    before = exported(up, model, "before")
    reference = Reference(before)
    data = make_data(reference, one_target)

    model.forward_backward(data, "cross_entropy")
    clipping = SGD.model_copy(update={"grad_clip_norm": 20.0})
    metrics = model.optim_step(clipping).result().metrics

    backward(reference, data, "cross_entropy", {})
    gradients = reference.gradients()
    norm = torch.stack([each.square().sum() for each in gradients.values()]).sum().sqrt().item()
    assert metrics is not None
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 40.0
    check_moved_by(before, exported(up, model, "after"), gradients, factor=20.0 / norm)
