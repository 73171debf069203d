"""Optimizer steps against torch.optim.AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cyclora_core.errors import UserError
from cyclora_core.operations import OptimStepBody
from cyclora_core.optimizers import OptimizerType
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.optimizer import optimizer_step
from workers.builders import load, qwen3, random_adapter

BODY = OptimStepBody(learning_rate=1e-2, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.1)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(qwen3(num_hidden_layers=1), tmp_path_factory.mktemp("base"))


def fill_gradient(state: AdapterState, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    state.gradient_P.copy_(torch.randn(state.gradient_P.shape, generator=generator))
    state.num_accumulated_passes = 1


@pytest.mark.parametrize("grad_clip_norm", [0.0, 0.5, 1e6])
def test_steps_equal_those_of_torch(base_model: BaseModel, grad_clip_norm: float) -> None:
    state = random_adapter(base_model, 4, 0)
    theirs = state.master_P.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.1)

    for step in range(5):
        fill_gradient(state, step)
        theirs.grad = state.gradient_P.clone()
        norm = torch.linalg.vector_norm(theirs.grad).item()
        metrics = optimizer_step(state, replace(BODY, grad_clip_norm=grad_clip_norm))
        if grad_clip_norm:
            torch.nn.utils.clip_grad_norm_([theirs], grad_clip_norm)
        optimizer.step()

        assert metrics == {"grad_norm": pytest.approx(norm), "num_steps": step + 1.0}
        torch.testing.assert_close(state.master_P, theirs.detach(), rtol=1e-5, atol=1e-7)


def stepped(flat: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Weights and moments after three steps on flat buffers, without an adapter around them."""
    master_P, first_P, second_P, *gradients = (each.clone() for each in flat)
    state: Any = SimpleNamespace(
        optimizer_type=OptimizerType.ADAMW,
        master_P=master_P,
        first_moment_P=first_P,
        second_moment_P=second_P,
        num_steps=0,
        num_accumulated_passes=1,
        refresh_weights=lambda: None,
    )
    for gradient_P in gradients:
        state.gradient_P = gradient_P
        optimizer_step(state, BODY)
    return master_P, first_P, second_P


def flat_buffers(num_elements: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_elements)
    master_P, first_P, second_P, *gradients = torch.randn(6, num_elements, generator=generator)
    return [master_P, first_P, second_P.square(), *gradients]


def test_steps_are_those_of_the_fused_adamw_to_the_bit(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    theirs = state.master_P.clone().requires_grad_()
    optimizer = torch.optim.AdamW(
        [theirs], lr=1e-2, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.1, fused=True
    )

    for step in range(4):
        fill_gradient(state, step)
        theirs.grad = state.gradient_P.clone()
        optimizer_step(state, BODY)
        optimizer.step()

    assert torch.equal(state.master_P, theirs.detach())


@pytest.mark.parametrize("num_elements", [1, 33, 4_096, 100_003])
def test_no_number_of_threads_changes_a_bit_of_a_step(num_elements: int) -> None:
    flat = flat_buffers(num_elements)
    num_threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(stepped(flat))
    finally:
        torch.set_num_threads(num_threads)

    assert all(
        torch.equal(*pair) for each in found[1:] for pair in zip(found[0], each, strict=True)
    )


def test_an_elements_place_in_its_buffer_changes_no_bit_of_it() -> None:
    """Snapshots and other layouts put it elsewhere; vector and remainder loops must agree."""
    flat = flat_buffers(10_007)
    whole = stepped(flat)

    for first, last in ((1, 10_007), (0, 10_000), (777, 9_001)):
        part = stepped([each[first:last].contiguous() for each in flat])
        assert all(torch.equal(a, b[first:last]) for a, b in zip(part, whole, strict=True))


def test_parameters_may_change_from_step_to_step(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    theirs = state.master_P.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=1.0, eps=1e-12)

    for step, learning_rate in enumerate((1e-2, 0.0, 5e-3)):
        fill_gradient(state, step)
        theirs.grad = state.gradient_P.clone()
        for group in optimizer.param_groups:
            group.update(lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01 * step)
        optimizer_step(state, OptimStepBody(learning_rate, weight_decay=0.01 * step))
        optimizer.step()

    torch.testing.assert_close(state.master_P, theirs.detach(), rtol=1e-5, atol=1e-7)


def test_a_step_leaves_a_zero_gradient_and_a_fresh_compute_copy(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    fill_gradient(state, 0)

    optimizer_step(state, BODY)

    assert not state.gradient_P.any()
    assert state.num_accumulated_passes == 0
    assert torch.equal(state.weights.flat_P, state.master_P)


def test_the_compute_copy_is_the_rounded_master(tmp_path: Path) -> None:
    state = random_adapter(load(qwen3(), tmp_path, torch.bfloat16), 4, 0)
    fill_gradient(state, 0)

    optimizer_step(state, BODY)

    assert state.weights.flat_P.dtype == torch.bfloat16
    assert torch.equal(state.weights.flat_P, state.master_P.bfloat16())


def test_without_accumulated_passes_the_moments_still_decay(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    fill_gradient(state, 0)
    optimizer_step(state, BODY)
    moment_P, master_P = state.first_moment_P.clone(), state.master_P.clone()

    metrics = optimizer_step(state, BODY)

    assert metrics["grad_norm"] == 0.0
    torch.testing.assert_close(state.first_moment_P, 0.8 * moment_P)
    assert not torch.equal(state.master_P, master_P)


def test_another_adapters_step_changes_no_byte_of_mine(base_model: BaseModel) -> None:
    mine, other = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 0)
    fill_gradient(mine, 0)
    fill_gradient(other, 1)
    before = mine.export_tensors()
    compute_copy = mine.weights.flat_P.clone()

    optimizer_step(other, BODY)

    after = mine.export_tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(compute_copy, mine.weights.flat_P)


def test_gaps_between_views_stay_zero(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 3, 0)
    covered_P = torch.zeros(state.layout.num_elements, dtype=torch.bool)
    for views in state.layout.views(covered_P).values():
        for view in views:
            view.fill_(True)
    for view in state.layout.views(state.gradient_P).values():
        view[0].fill_(1.0)

    optimizer_step(state, BODY)

    assert covered_P.logical_not().any()
    assert not state.master_P[~covered_P].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"beta2": -0.1}, "beta2 is -0.1"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"grad_clip_norm": -1.0}, "grad_clip_norm is -1.0"),
    ],
)
def test_a_refused_step_changes_nothing(
    base_model: BaseModel, change: dict[str, float], message: str
) -> None:
    state = random_adapter(base_model, 4, 0)
    fill_gradient(state, 0)
    before = state.export_tensors()

    with pytest.raises(UserError, match=message):
        optimizer_step(state, replace(BODY, **change))

    assert all(torch.equal(before[k], v) for k, v in state.export_tensors().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_dropped_and_moves_nothing(
    base_model: BaseModel, bad: float
) -> None:
    state = random_adapter(base_model, 4, 0)
    fill_gradient(state, 1)
    optimizer_step(state, BODY)
    before = state.export_tensors()
    fill_gradient(state, 2)
    state.gradient_P[5] = bad

    with pytest.raises(UserError, match=str(bad)):
        optimizer_step(state, BODY)

    after = state.export_tensors()
    assert all(torch.equal(after[name], value) for name, value in before.items())
