"""A quantised base model is, to rounding, the plain model whose weights are the dequantised ones.

The plain model gets the dense form of each quantised weight, and PEFT; what dense forms there
should be is written out in tests/workers/test_quantized_weight.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cyclora_core.operations import Datum, LoraConfig, PassBody
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.checkpoint import load_checkpoint, save_checkpoint
from cyclora_workers.multi_adapter_linear import MultiAdapterLinear
from cyclora_workers.quantized_weight import BaseWeights, QuantizedWeight
from parity.peft_reference import PeftReference
from parity.tolerances import FORWARD, GRADIENT, close
from workers.builders import (
    ARCHITECTURES,
    cross_entropy,
    item,
    load,
    policy_body,
    random_adapter,
    run,
)
from workers.sampling.builders import bits, body, random_tokens, sample, threads, tokens_of

FP32 = torch.float32
BASE_WEIGHTS: list[BaseWeights] = ["int8", "int4"]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised base model, and how to make its plain twin."""

    architecture: str
    base_model: BaseModel

    def twin(self) -> PreTrainedModel:
        model = ARCHITECTURES[self.architecture]()
        dense: dict[str, Tensor] = {}
        for module in self.base_model._inner.modules():  # pyright: ignore[reportPrivateUsage]
            if isinstance(module, MultiAdapterLinear):
                assert isinstance(module.weight, QuantizedWeight)
                dense[module.name] = module.weight.dense()
        with torch.no_grad():
            for name, weight_FD in dense.items():
                linear = model.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                linear.weight.copy_(weight_FD)
        return model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=BASE_WEIGHTS)
def quantized(
    architecture: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Quantized:
    folder = tmp_path_factory.mktemp("base")
    plain = ARCHITECTURES[architecture]()
    return Quantized(architecture, load(plain, folder, base_weights=request.param))


def test_losses_logprobs_and_gradients_equal_those_of_the_dequantised_model(
    quantized: Quantized,
) -> None:
    base_model = quantized.base_model
    states = {
        "a": random_adapter(base_model, 3, 3),
        "b": random_adapter(base_model, 8, 8, train_unembed=False),
        "c": random_adapter(base_model, 2, 2, train_mlp=False),
    }
    bodies = {
        "a": cross_entropy([11, 1, 29]),
        "b": policy_body("ppo", [7, 40], 0, {"clip_low_threshold": 0.5}),
        "c": policy_body("importance_sampling", [13]),
    }
    references = {key: PeftReference(quantized.twin(), state) for key, state in states.items()}

    results = run(base_model, [item(states[k], b, k) for k, b in bodies.items()]).results()

    for key, passed in bodies.items():
        loss, logprobs = references[key].forward_backward(passed)
        assert results[key].metrics["loss:sum"] == pytest.approx(loss, rel=1e-4, abs=1e-3)
        for ours, theirs in zip(results[key].logprobs, logprobs, strict=True):
            close(torch.from_numpy(ours), theirs, FORWARD[FP32])
        for ours, theirs in references[key].compare_gradients(states[key]):
            close(ours, theirs, GRADIENT[FP32])


def test_logprobs_of_a_sample_equal_forward(quantized: Quantized) -> None:
    base_model = quantized.base_model
    state = random_adapter(base_model, 4, 4)
    prompt = random_tokens(21, 5) % base_model.vocab_size

    (sequence,) = sample(
        base_model, body(prompt, max_tokens=12, seed=3), state.snapshot_weights()
    ).sequences

    tokens = np.concatenate((prompt, np.asarray(tokens_of(sequence), np.int32)))
    inputs = {
        "target_tokens": tokens[1:].astype(np.int64),
        "weights": np.ones(len(tokens) - 1, np.float32),
    }
    passed = PassBody("cross_entropy", {}, [Datum(tokens[:-1], inputs)])
    forward = run(base_model, [item(state, passed, needs_gradient=False)]).results()["r"]
    np.testing.assert_allclose(
        sequence.logprobs, forward.logprobs[0][len(prompt) - 1 :], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_random_neighbours_change_no_bit(quantized: Quantized, num_threads: int) -> None:
    base_model = quantized.base_model
    rng = np.random.default_rng(num_threads)
    with threads(num_threads):
        for _ in range(3):
            seed = int(rng.integers(1000))
            lengths = [int(n) for n in rng.integers(1, 80, 3)]
            state = random_adapter(base_model, int(rng.integers(1, 9)), seed)
            mine = item(state, cross_entropy(lengths, seed), "mine")
            alone = run(base_model, [mine]).results()["mine"]
            gradient_P = state.gradient_P.clone()
            state.gradient_P.zero_()
            before, after = (
                item(
                    random_adapter(base_model, int(rng.integers(1, 9)), seed + place),
                    cross_entropy([int(n) for n in rng.integers(1, 120, 3)], seed + place),
                    f"neighbour {place}",
                )
                for place in (1, 2)
            )

            together = run(base_model, [before, mine, after], 512).results()["mine"]

            assert alone.metrics == together.metrics
            for ours, other in zip(alone.logprobs, together.logprobs, strict=True):
                np.testing.assert_array_equal(ours, other)
            assert torch.equal(gradient_P, state.gradient_P)


def test_a_checkpoint_moves_between_a_quantised_and_a_full_base_model(
    quantized: Quantized, tmp_path: Path
) -> None:
    """It holds the adapter alone: on either base model it is to the bit what was saved."""
    full = load(ARCHITECTURES[quantized.architecture](), tmp_path / "full")
    state = random_adapter(quantized.base_model, 4, 4)
    folders = {
        base_model: tmp_path / name
        for base_model, name in ((quantized.base_model, "from quantised"), (full, "from full"))
    }
    for base_model, folder in folders.items():
        save_checkpoint(state, base_model, folder, with_optimizer=True)

    again = AdapterState.empty(full, LoraConfig(4, 4))
    load_checkpoint(again, folders[quantized.base_model], with_optimizer=True)

    assert torch.equal(again.master_P, state.master_P)
    ours, theirs = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders.values()
    )
    assert ours == theirs


def test_loading_twice_gives_the_same_bits(quantized: Quantized, tmp_path: Path) -> None:
    """A replayed log must find the base model that it was recorded with."""
    base_weights: BaseWeights = (
        "int8" if any(t.dtype == torch.int8 for t in quantized.base_model.frozen) else "int4"
    )
    plain = ARCHITECTURES[quantized.architecture]()
    again = load(plain, tmp_path, base_weights=base_weights)
    request = body(random_tokens(21, 5) % again.vocab_size, max_tokens=9, seed=3)

    assert bits(sample(again, request, None)) == bits(sample(quantized.base_model, request, None))


@pytest.mark.parametrize("base_weights", BASE_WEIGHTS)
def test_bf16_stays_close_to_the_dequantised_model(
    base_weights: BaseWeights, tmp_path: Path
) -> None:
    base_model = load(ARCHITECTURES["qwen2"](), tmp_path, torch.bfloat16, base_weights)
    twin = Quantized("qwen2", base_model).twin()
    state = random_adapter(base_model, 3, 3)
    reference = PeftReference(twin, state)
    passed = cross_entropy([11, 29])

    result = run(base_model, [item(state, passed)]).results()["r"]

    _, logprobs = reference.forward_backward(passed)
    for ours, theirs in zip(result.logprobs, logprobs, strict=True):
        close(torch.from_numpy(ours), theirs, FORWARD[torch.bfloat16])
