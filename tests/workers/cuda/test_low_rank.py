"""The grouped low-rank kernels against one fp32 product per segment, left to autograd.

Legend: T packed tokens, D features in, F features out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cyclora_core.operations import LoraConfig
from cyclora_workers.adapter import AdapterLayout, AdapterWeights, ModuleGroup, TargetModule
from cyclora_workers.context import Segment
from cyclora_workers.cuda.segment_table import AddressBook, SegmentTable, TableSize
from parity.tolerances import FORWARD, GRADIENT, close

IN, OUT = 72, 40
MODULES = [
    TargetModule("other", IN, OUT, ModuleGroup.ATTN),
    TargetModule("layer", IN, OUT, ModuleGroup.MLP),
]
POPULARITIES = {
    "distinct": [(1, 4), (1, 8), (1, 3), (1, 16)],
    "uniform": [(20, 8), (20, 8), (20, 8)],
    "skewed": [(130, 8), (1, 32), (2, 1), (5, 20)],
    "one": [(33, 70)],
}
"""Rows and lora_rank of each segment."""


def adapter(
    rank: int, seed: int, dtype: torch.dtype, device: torch.device, **flags: bool
) -> AdapterWeights:
    layout = AdapterLayout(MODULES, LoraConfig(rank, **{"train_unembed": False, **flags}))
    generator = torch.Generator().manual_seed(seed)
    flat_P = (torch.randn(layout.num_elements, generator=generator) * 0.3).to(device, dtype)
    gradient_P = torch.ones(layout.num_elements, device=device)
    return layout.weights(flat_P, gradient_P)


def segments_of(
    shape: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> list[Segment]:
    bounds = [0, *itertools.accumulate(rows for rows, _ in shape)]
    return [
        Segment(start, stop, adapter(rank, seed, dtype, device))
        for seed, ((start, stop), (_, rank)) in enumerate(
            zip(itertools.pairwise(bounds), shape, strict=True)
        )
    ]


class Case:
    """Inputs, what the kernels make of them, and what autograd makes of them in fp32."""

    def __init__(
        self,
        segments: Sequence[Segment],
        dtype: torch.dtype,
        device: torch.device,
        num_rows: int,
        block_rows: int = 16,
    ) -> None:
        from cyclora_workers.cuda.low_rank import LowRank

        generator = torch.Generator().manual_seed(5)

        def drawn(num_columns: int) -> Tensor:
            return torch.randn(num_rows, num_columns, generator=generator).to(device, dtype)

        self.segments = segments
        self.x_TD, self.y_TF, self.dy_TF, self.dx_TD = drawn(IN), drawn(OUT), drawn(OUT), drawn(IN)
        book = AddressBook([module.name for module in MODULES])
        table = SegmentTable.of(book, segments, block_rows, device)
        self.low_rank: Any = LowRank(table, book.module_indices["layer"])

    def expected(self) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """y, dx, and the gradients of A and B of each segment, on top of what was there."""
        x_TD = self.x_TD.float().requires_grad_()
        y_TF = self.y_TF.float()
        matrices: list[tuple[Tensor, Tensor]] = []
        for segment in self.segments:
            module = segment.adapter and segment.adapter.modules.get("layer")
            if segment.adapter is None or module is None:
                continue
            lora_A = module.lora_A_RD.detach().float().requires_grad_()
            lora_B = module.lora_B_FR.detach().float().requires_grad_()
            matrices.append((lora_A, lora_B))
            rows = slice(segment.start, segment.stop)
            part = segment.adapter.scaling * (x_TD[rows] @ lora_A.T) @ lora_B.T
            y_TF = torch.cat((y_TF[: segment.start], y_TF[rows] + part, y_TF[segment.stop :]))
        y_TF.backward(self.dy_TF.float())  # type: ignore[no-untyped-call]
        dx_TD = self.dx_TD.float() + (0 if x_TD.grad is None else x_TD.grad)
        gradients = [(_gradient(a) + 1, _gradient(b) + 1) for a, b in matrices]
        return y_TF.detach(), dx_TD, gradients

    def run(self) -> None:
        low = self.low_rank.add_(self.y_TF, self.x_TD)
        dlow = self.low_rank.low_gradient(self.dy_TF)
        self.low_rank.accumulate_(self.dy_TF, self.x_TD, low, dlow)
        self.low_rank.add_input_gradient_(self.dx_TD, dlow)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_forward_and_gradients_equal_a_product_per_segment(
    kernel_device: torch.device, kernel_dtype: torch.dtype, popularity: str
) -> None:
    shape = POPULARITIES[popularity]
    num_rows = sum(rows for rows, _ in shape) + 3
    segments = segments_of(shape, kernel_dtype, kernel_device)
    case = Case(segments, kernel_dtype, kernel_device, num_rows)
    y_TF, dx_TD, gradients = case.expected()

    case.run()

    close(case.y_TF, y_TF, FORWARD[kernel_dtype])
    close(case.dx_TD, dx_TD, FORWARD[kernel_dtype])
    for segment, (grad_A, grad_B) in zip(segments, gradients, strict=True):
        assert segment.adapter is not None
        module = segment.adapter.modules["layer"]
        assert module.gradient_A_RD is not None
        assert module.gradient_B_FR is not None
        close(module.gradient_A_RD, grad_A, GRADIENT[kernel_dtype])
        close(module.gradient_B_FR, grad_B, GRADIENT[kernel_dtype])


def test_many_rows_take_one_sum_and_few_rows_partial_ones(kernel_device: torch.device) -> None:
    segments = segments_of([(1000, 4), (30, 8)], torch.float32, kernel_device)
    case = Case(segments, torch.float32, kernel_device, 1030, block_rows=64)
    y_TF, *_ = case.expected()

    low_PTW = case.low_rank.add_(case.y_TF, case.x_TD)

    assert low_PTW.shape == (1, 1030, 8)
    close(case.y_TF, y_TF, FORWARD[torch.float32])


def test_segments_of_one_adapter_add_up_in_its_gradient(kernel_device: torch.device) -> None:
    shared = adapter(4, 0, torch.float32, kernel_device)
    other = adapter(8, 1, torch.float32, kernel_device)
    segments = [Segment(0, 7, shared), Segment(7, 9, other), Segment(9, 30, shared)]
    case = Case(segments, torch.float32, kernel_device, 30)
    _, _, gradients = case.expected()

    case.run()

    grad_A = shared.modules["layer"].gradient_A_RD
    assert grad_A is not None
    # Each of the two expectations counts the ones that were there before.
    close(grad_A, gradients[0][0] + gradients[2][0] - 1, GRADIENT[torch.float32])


def test_rows_without_an_adapter_and_modules_that_it_leaves_alone_stay_as_they_are(
    kernel_device: torch.device,
) -> None:
    elsewhere = adapter(4, 0, torch.float32, kernel_device, train_mlp=False)
    segments = [
        Segment(0, 5, None),
        Segment(5, 9, elsewhere),
        Segment(9, 20, adapter(4, 1, torch.float32, kernel_device)),
    ]
    case = Case(segments, torch.float32, kernel_device, 24)
    y_TF, dx_TD = case.y_TF.clone(), case.dx_TD.clone()
    untouched = elsewhere.modules["other"].gradient_A_RD
    assert untouched is not None

    case.run()

    for kept, before in ((case.y_TF, y_TF), (case.dx_TD, dx_TD)):
        assert torch.equal(kept[:9], before[:9])
        assert torch.equal(kept[20:], before[20:])
        assert not torch.equal(kept[9:20], before[9:20])
    assert torch.equal(untouched, torch.ones_like(untouched))


def test_an_adapter_gets_the_same_bits_beside_others(kernel_device: torch.device) -> None:
    mine = adapter(5, 0, torch.float32, kernel_device)
    case = Case([Segment(0, 21, mine)], torch.float32, kernel_device, 64)
    case.run()
    alone = [case.y_TF[:21].clone(), case.dx_TD[:21].clone()]
    gradient = mine.modules["layer"].gradient_A_RD
    assert gradient is not None
    alone.append(gradient.clone())
    gradient.fill_(1)

    beside = Segment(21, 60, adapter(30, 1, torch.float32, kernel_device))
    case = Case([Segment(0, 21, mine), beside], torch.float32, kernel_device, 64)
    case.run()

    for before, after in zip(alone, [case.y_TF[:21], case.dx_TD[:21], gradient], strict=True):
        assert torch.equal(before, after)


def test_a_table_with_room_to_spare_serves_one_pass_after_another(
    kernel_device: torch.device,
) -> None:
    first = segments_of([(3, 4), (5, 8)], torch.float32, kernel_device)
    second = segments_of([(9, 2)], torch.float32, kernel_device)
    for segments in (first, second, first):
        case = Case(segments, torch.float32, kernel_device, 16)
        book = AddressBook([module.name for module in MODULES])
        table = SegmentTable(book, TableSize(6, 12, 16), 16, kernel_device)
        for each in (first, second, segments):
            table.fill(each)
        y_TF, *_ = case.expected()
        low_rank = type(case.low_rank)(table, book.module_indices["layer"])

        low_rank.add_(case.y_TF, case.x_TD)

        close(case.y_TF, y_TF, FORWARD[torch.float32])


def test_a_pass_laid_out_like_the_last_is_not_copied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    segments = segments_of([(3, 4), (5, 8)], torch.float32, cpu)
    table = SegmentTable.of(AddressBook(["layer"]), segments, 16, cpu)
    copies: list[Tensor] = []

    def noted(host: Tensor, _device: torch.device) -> Tensor:
        copies.append(host)
        return host

    monkeypatch.setattr("cyclora_workers.cuda.segment_table.to_device", noted)
    table.fill(list(segments))
    assert copies == []

    table.fill(segments[:1])
    assert copies


def test_addresses_are_forgotten_with_the_weights() -> None:
    cpu = torch.device("cpu")
    book = AddressBook(["layer"])
    weights = adapter(4, 0, torch.float32, cpu)
    lora_A = weights.modules["layer"].lora_A_RD

    assert book.addresses(weights)[0, 0] == lora_A.data_ptr()

    del weights
    assert len(book._known) == 0  # pyright: ignore[reportPrivateUsage]


def test_fp32_outputs_take_half_precision_matrices(
    kernel_device: torch.device, kernel_dtype: torch.dtype
) -> None:
    """As logits do: fp32 of hidden states in the base model's dtype, in rows that lie apart."""
    segments = segments_of(POPULARITIES["distinct"], kernel_dtype, kernel_device)
    case = Case(segments, kernel_dtype, kernel_device, 8)
    expected, _, _ = case.expected()
    y_TF = torch.zeros(8, OUT + 24, device=kernel_device)[:, :OUT]
    y_TF.copy_(case.y_TF)

    case.low_rank.add_(y_TF, case.x_TD)

    assert y_TF.dtype is torch.float32
    close(y_TF, expected, FORWARD[kernel_dtype])
