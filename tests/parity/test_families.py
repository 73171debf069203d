"""Every family trains as PEFT trains it, samples as ``generate`` does, and is alone in its bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from cyclora_core.operations import LoraConfig, PassResult
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.checkpoint import load_checkpoint, save_checkpoint
from cyclora_workers.passes import PackedPasses
from parity.families import FAMILIES
from parity.peft_reference import PeftReference, quiet_peft
from parity.tolerances import EXPORT, FORWARD, GRADIENT, close
from workers.builders import cross_entropy, item, load, policy_body, random_adapter, run
from workers.sampling.builders import (
    bits,
    body,
    random_tokens,
    run_until_idle,
    sample,
    sampler,
    threads,
    tokens_of,
)

FP32 = torch.float32
MAX_DIFFERENCE = 1e-5
"""Of logprobs in fp32, where one and the same model is computed in two ways."""


@dataclass(frozen=True, slots=True)
class Served:
    """A family's tiny model as a base model."""

    name: str
    base_model: BaseModel


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("family")
    return Served(request.param, load(FAMILIES[request.param].make(), folder))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def test_losses_logprobs_and_gradients_equal_those_of_peft(served: Served) -> None:
    base_model = served.base_model
    states = {
        "a": random_adapter(base_model, 3, 3),
        "b": random_adapter(base_model, 8, 8, train_unembed=False),
    }
    bodies = {
        "a": cross_entropy([11, 1, 29]),
        "b": policy_body("ppo", [7, 40], 0, {"clip_low_threshold": 0.5}),
    }
    references = {k: PeftReference(FAMILIES[served.name].make(), s) for k, s in states.items()}

    results = run(base_model, [item(states[k], b, k) for k, b in bodies.items()]).results()

    for key, passed in bodies.items():
        loss, logprobs = references[key].forward_backward(passed)
        assert results[key].metrics["loss:sum"] == pytest.approx(loss, rel=1e-4, abs=1e-3)
        for ours, theirs in zip(results[key].logprobs, logprobs, strict=True):
            close(torch.from_numpy(ours), theirs, FORWARD[FP32])
        for ours, theirs in references[key].compare_gradients(states[key]):
            close(ours, theirs, GRADIENT[FP32])


@torch.no_grad()
def test_greedy_samples_equal_generate(served: Served) -> None:
    """Tokens, and their logprobs as ``generate`` scores them; the prompt exceeds every window."""
    base_model = served.base_model
    state = random_adapter(base_model, 4, 4)
    reference = PeftReference(FAMILIES[served.name].make(), state)
    prompt = random_tokens(21, 5) % base_model.vocab_size

    result = sample(
        base_model, body(prompt, temperature=0.0, max_tokens=12), state.snapshot_weights()
    )

    generated: Any = reference.model.generate(
        input_ids=torch.from_numpy(prompt).long()[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = generated.sequences[0, len(prompt) :]
    (sequence,) = result.sequences
    assert tokens_of(sequence) == tokens.tolist()
    logprobs = torch.cat(generated.logits).float().log_softmax(-1).gather(1, tokens[:, None])
    np.testing.assert_allclose(
        sequence.logprobs, logprobs[:, 0].numpy(), rtol=0, atol=MAX_DIFFERENCE
    )


def test_a_sample_has_the_same_bits_beside_others(served: Served) -> None:
    """Some of several rows, so that rows of one prompt attend in two parts."""
    base_model = served.base_model
    adapters = [random_adapter(base_model, rank, rank).snapshot_weights() for rank in (1, 5)]
    requests = {
        f"r{i}": (
            body(
                random_tokens(length, i) % base_model.vocab_size,
                num_samples=(1, 3)[i % 2],
                max_tokens=6 + i,
                seed=i,
                prompt_logprobs=i == 2,
            ),
            [*adapters, None][i % 3],
        )
        for i, length in enumerate((1, 33, 70, 9, 14))
    }
    together = sampler(base_model)
    for request_id, (request, adapter) in requests.items():
        together.admit(request_id, request, adapter)
        together.step()

    results = run_until_idle(together)

    for request_id, (request, adapter) in requests.items():
        assert bits(results[request_id]) == bits(sample(base_model, request, adapter))


@torch.no_grad()
def test_plain_peft_loads_a_checkpoint_and_it_comes_back_to_the_bit(
    served: Served, tmp_path: Path
) -> None:
    base_model, family = served.base_model, FAMILIES[served.name]
    state = random_adapter(base_model, 4, 4)
    save_checkpoint(state, base_model, tmp_path / "checkpoint", with_optimizer=True)
    passed = cross_entropy([15])
    ours = run(base_model, [item(state, passed, needs_gradient=False)]).results()["r"].logprobs[0]

    with quiet_peft():
        model: Any = PeftModel.from_pretrained(family.make(), str(tmp_path / "checkpoint"))
    again = AdapterState.empty(base_model, LoraConfig(4, 4))
    load_checkpoint(again, tmp_path / "checkpoint", with_optimizer=True)

    targets = torch.from_numpy(passed.data[0].loss_fn_inputs["target_tokens"])
    logits = model(torch.from_numpy(passed.data[0].tokens).long()[None]).logits[0]
    theirs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    close(torch.from_numpy(ours), theirs, EXPORT[FP32])
    assert torch.equal(again.master_P, state.master_P)


def _outcome(passes: PackedPasses, state: AdapterState) -> tuple[PassResult, torch.Tensor]:
    return passes.results()["mine"], state.gradient_P.clone()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_random_neighbours_change_no_bit(served: Served, num_threads: int) -> None:
    base_model = served.base_model
    rng = np.random.default_rng([num_threads, len(served.name)])
    with threads(num_threads):
        for _ in range(4):
            seed = int(rng.integers(1000))
            lengths = [int(n) for n in rng.integers(1, 80, 3)]
            state = random_adapter(base_model, int(rng.integers(1, 9)), seed)
            mine = item(state, cross_entropy(lengths, seed), "mine")
            alone, gradient_P = _outcome(run(base_model, [mine]), state)
            state.gradient_P.zero_()
            before, after = (
                item(
                    random_adapter(base_model, int(rng.integers(1, 9)), seed + place),
                    cross_entropy([int(n) for n in rng.integers(1, 200, 3)], seed + place),
                    f"neighbour {place}",
                )
                for place in (1, 2)
            )

            together, beside_P = _outcome(run(base_model, [before, mine, after], 512), state)

            assert alone.metrics == together.metrics
            for ours, other in zip(alone.logprobs, together.logprobs, strict=True):
                np.testing.assert_array_equal(ours, other)
            assert torch.equal(gradient_P, beside_P)


def test_every_family_of_the_page_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    tested = page.partition("## Tested")[2].partition("## ")[0]

    assert sorted(FAMILIES) == sorted(re.findall(r"^\| ([^|]+?) \|", tested, re.MULTILINE)[1:])
