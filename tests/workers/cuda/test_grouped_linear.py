"""The grouped layer against the layer that takes one segment after another, in a whole model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cyclora_core.operations import PassResult
from cyclora_workers.adapter import AdapterState
from cyclora_workers.attention import PackedAttention
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.grouped_linear import GroupedLinears, can_group
from cyclora_workers.cuda.low_rank import MAX_GROUPED_ROWS, is_grouped
from cyclora_workers.pass_blocks import PassItem
from parity.families import FAMILIES
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


@pytest.fixture(scope="module", params=["as_loaded", "int8", "int4", "mixture"])
def base_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> BaseModel:
    folder = tmp_path_factory.mktemp("base")
    if request.param == "mixture":
        # Its routers are linear layers that no adapter targets.
        return load(FAMILIES["qwen3-moe"].make(), folder)
    return load(ARCHITECTURES["qwen2"](), folder, base_weights=request.param)


def mixed_items(base_model: BaseModel) -> tuple[list[AdapterState], list[PassItem]]:
    """Ranks, target modules, losses and lengths all differ; one adapter occurs twice."""
    small = random_adapter(base_model, 1, 11)
    large = random_adapter(base_model, 18, 12, train_attn=False)
    other = random_adapter(base_model, 3, 13, train_unembed=False)
    return [small, large, other], [
        item(small, cross_entropy([1], 70), "small"),
        item(large, policy_body("ppo", [9, 3, 1], 0), "large"),
        item(other, cross_entropy([9, 4], 1), "forward", needs_gradient=False),
        item(small, cross_entropy([5, 7], 2), "small again"),
        item(other, cross_entropy([6], 3), "other"),
    ]


def results(base_model: BaseModel) -> tuple[dict[str, PassResult], list[Tensor]]:
    adapters, items = mixed_items(base_model)
    return run(base_model, items).results(), [adapter.gradient_P for adapter in adapters]


def test_a_model_trains_alike_with_grouped_layers(
    base_model: BaseModel, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPU tests/gpu compares the whole; here the kernels are interpreted."""
    if kernel_device.type != "cpu":
        pytest.skip("the base model is on the CPU")
    theirs, their_gradients = results(base_model)
    grouped = GroupedLinears(base_model.linear_names, kernel_device)
    monkeypatch.setattr(base_model, "grouped", grouped)

    ours, our_gradients = results(base_model)

    for request_id, expected in theirs.items():
        pairs = zip(ours[request_id].logprobs, expected.logprobs, strict=True)
        for mine, other in pairs:
            close(torch.from_numpy(mine), torch.from_numpy(other), FORWARD[torch.float32])
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert other.abs().max() > 0
        close(mine, other, GRADIENT[torch.float32])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([3, 5], True),
        ([3], False),
        ([], False),
        ([MAX_GROUPED_ROWS, MAX_GROUPED_ROWS], False),
        ([MAX_GROUPED_ROWS, MAX_GROUPED_ROWS - 1], True),
    ],
)
def test_many_short_segments_are_grouped_and_few_long_ones_are_not(
    base_model: BaseModel, rows: Sequence[int], expected: bool
) -> None:
    weights = random_adapter(base_model, 1, 0).weights
    segments = [Segment(0, 7, None)]
    for count in rows:
        segments.append(Segment(segments[-1].stop, segments[-1].stop + count, weights))

    assert is_grouped(segments) is expected


def test_a_pass_that_brings_its_table_keeps_it(base_model: BaseModel) -> None:
    grouped = GroupedLinears(["layer"], torch.device("cpu"))
    weights = random_adapter(base_model, 1, 0).weights
    segments = [Segment(0, 1, weights), Segment(1, 2, weights)]

    first = grouped.prepared(PassContext(segments, PackedAttention([0, 2])))

    assert first.segment_table is not None
    assert grouped.prepared(first) is first


def test_nothing_is_grouped_on_a_cpu() -> None:
    assert not can_group(torch.device("cpu"))
