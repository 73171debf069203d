"""What the training benchmark compares is what it says it compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bounds import MatrixProducts
from shapes import SHAPES, TINY
from torch import Tensor
from work import (
    MAX_TOKENS,
    MIN_TOKENS,
    bare_pass,
    dealt,
    engine_step,
    num_tokens,
    random_data,
)

from cyclora_workers import tiny_chat
from cyclora_workers.base_model import BaseModel
from cyclora_workers.multi_adapter_linear import MultiAdapterLinear


@pytest.fixture(scope="module")
def base_model() -> BaseModel:
    cpu = torch.device("cpu")
    return BaseModel.load(TINY.name, tiny_chat.model_dir(), dtype=torch.float32, device=cpu)


def test_the_smallest_shape_is_that_of_the_built_in_model(base_model: BaseModel) -> None:
    found = (base_model.num_layers, base_model.hidden_size, base_model.vocab_size)

    assert (TINY.num_layers, TINY.hidden_size, TINY.vocab_size) == found
    assert (TINY.num_kv_heads, TINY.head_size) == (base_model.num_kv_heads, base_model.head_size)
    assert [f"{s.num_layers} x {s.hidden_size}" for s in SHAPES] == [s.name for s in SHAPES]


def test_the_bound_counts_each_frozen_weight_forward_and_backward(base_model: BaseModel) -> None:
    """Twice two operations a weight, less the input gradients below the first adapted layer."""
    modules = base_model.target_modules
    sizes = {module.name: module.in_features * module.out_features for module in modules}
    not_back = [f"model.layers.0.self_attn.{each}_proj" for each in "qkv"]
    per_token = 4 * sum(sizes.values()) - 2 * sum(sizes[name] for name in not_back)

    bound = MatrixProducts(base_model, 100, 64)
    bound()

    assert bound.flops == 100 * per_token


def test_dealing_data_out_gives_every_tenant_as_many() -> None:
    data = random_data(12, vocab_size=50)

    work = dealt(data, 4)

    assert [len(body.data) for body in work] == [3, 3, 3, 3]
    assert num_tokens(work) == num_tokens(dealt(data, 1))


@pytest.mark.parametrize("num_data", [1, 4, 64])
def test_other_rounds_have_other_lengths_and_as_many_tokens(num_data: int) -> None:
    def lengths(seed: int, total: int | None = None) -> list[int]:
        return [len(datum.tokens) for datum in random_data(num_data, 50, seed, total=total)]

    first = lengths(0)
    others = [lengths(seed, sum(first)) for seed in range(1, 6)]

    assert {sum(each) for each in others} == {sum(first)}
    assert all(MIN_TOKENS <= length <= MAX_TOKENS for each in others for length in each)
    assert num_data == 1 or all(each != first for each in others)


def test_each_step_takes_the_next_work(base_model: BaseModel) -> None:
    sizes = (40, 50)
    works = [dealt(random_data(1, base_model.vocab_size, total=size), 1) for size in sizes]
    ran: list[int] = []
    hidden = base_model.hidden

    def watched(tokens_T: Tensor, *others: Any) -> Tensor:
        ran.append(len(tokens_T))
        return hidden(tokens_T, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "hidden", watched)
        step = engine_step(base_model, works)
        for _ in range(3):
            step()

    assert ran == [40, 50, 40]


def test_a_pass_without_adapters_still_goes_back_to_the_first_layer(
    base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else LoRA would look dearer than it is: half of the frozen products would be missing."""
    reached: list[str] = []
    forward = MultiAdapterLinear.forward

    def watched(self: MultiAdapterLinear, x: Tensor) -> Tensor:
        y = forward(self, x)

        def note(_gradient: Tensor) -> None:
            reached.append(self.name)

        if y.requires_grad:
            y.register_hook(note)
        return y

    monkeypatch.setattr(MultiAdapterLinear, "forward", watched)
    work = dealt(random_data(2, base_model.vocab_size), 2)
    with_adapters, without = engine_step(base_model, [work]), bare_pass(base_model, [work])

    without()
    bare, reached = set(reached), []
    with_adapters()

    below = {"model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"}
    assert bare == set(reached) - below
