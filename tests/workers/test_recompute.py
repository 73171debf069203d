"""Layers computed a second time: less memory, and not a bit of difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_workers.activation_memory import (
    ActivationMemory,
    free_in_group,
    measure_activation_memory,
)
from cyclora_workers.base_model import BaseModel
from workers.builders import (
    ARCHITECTURES,
    CPU,
    cross_entropy,
    item,
    load,
    policy_body,
    qwen3,
    random_adapter,
    run,
)


def outcome(base_model: BaseModel, **options: Any) -> tuple[list[Tensor], list[Any]]:
    """Gradients and logprobs of two tenants of different ranks."""
    states = [random_adapter(base_model, 4, 0), random_adapter(base_model, 7, 1)]
    bodies = [cross_entropy([7, 33, 1], 1), policy_body("ppo", [20, 5], 2)]
    items = [item(s, b, f"r{i}") for i, (s, b) in enumerate(zip(states, bodies, strict=True))]
    passes = run(base_model, items, **options)
    results = passes.results()
    return [s.gradient_P for s in states], [results[f"r{i}"].logprobs for i in range(2)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("num_threads")
def test_gradients_have_the_same_bits(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base_model = load(ARCHITECTURES[architecture](), tmp_path, dtype)
    kept, again = outcome(base_model), outcome(base_model, max_kept_tokens=0)

    assert all(torch.equal(a, b) for a, b in zip(kept[0], again[0], strict=True))
    assert all(bool(gradient_P.any()) for gradient_P in kept[0])
    for mine, theirs in zip(kept[1], again[1], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("max_kept_tokens", "is_recomputed"), [(None, 0), (66, 0), (65, 1)])
def test_only_a_microbatch_that_is_too_large_is_computed_again(
    max_kept_tokens: int | None,
    is_recomputed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base_model = load(qwen3(), tmp_path)
    seen: list[bool] = []
    real = BaseModel.hidden

    def hidden(self: BaseModel, tokens_T: Tensor, positions_T: Tensor, context: Any) -> Tensor:
        seen.append(context.is_recomputed)
        return real(self, tokens_T, positions_T, context)

    monkeypatch.setattr(BaseModel, "hidden", hidden)
    outcome(base_model, max_kept_tokens=max_kept_tokens)

    assert seen == [bool(is_recomputed)]


def test_recomputing_keeps_a_hidden_state_per_layer(tmp_path: Path) -> None:
    base_model = load(qwen3(num_hidden_layers=3), tmp_path)

    memory = measure_activation_memory(base_model)

    assert memory.recomputed_bytes_per_token < memory.bytes_per_token / 2
    hidden_bytes = base_model.hidden_size * 4
    assert memory.recomputed_bytes_per_token >= base_model.num_layers * hidden_bytes


def test_what_a_token_keeps_grows_with_the_layers(tmp_path: Path) -> None:
    sizes = [
        measure_activation_memory(
            load(qwen3(num_hidden_layers=layers), tmp_path / str(layers))
        ).bytes_per_token
        for layers in (1, 2, 3)
    ]

    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.05)


def test_a_measurement_leaves_the_base_model_as_it_was(tmp_path: Path) -> None:
    base_model = load(qwen3(), tmp_path)
    before = outcome(base_model)[0]

    measure_activation_memory(base_model)

    assert all(torch.equal(a, b) for a, b in zip(outcome(base_model)[0], before, strict=True))


@pytest.mark.parametrize(
    ("available_bytes", "expected"), [(1e12, 4096), (100_000.0, 1000), (10.0, 1)]
)
def test_a_microbatch_fits_and_is_no_larger_than_pays(
    available_bytes: float, expected: int
) -> None:
    assert ActivationMemory(100.0, 10.0, available_bytes).microbatch_tokens(CPU) == expected


def test_a_containers_bound_counts_as_well(tmp_path: Path) -> None:
    assert free_in_group(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("70\n")
    assert free_in_group(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("100\n")
    assert free_in_group(tmp_path) == 30
