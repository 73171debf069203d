"""The one-call attention of packed sequences, with the flash kernel played by a slow reference.

What the kernel itself computes, tests/gpu compares. Here: what it is asked, and what is made of
its answer.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from cyclora_workers.attention import PackedAttention
from cyclora_workers.cuda import varlen as cuda_varlen
from cyclora_workers.cuda.varlen import VarlenAttention, deterministic_sums, is_supported
from cyclora_workers.packed_plan import packed_attention
from parity.tolerances import FORWARD, GRADIENT, close
from workers.cuda.references import attend_packed

CPU = torch.device("cpu")
REAL_SIGNATURE = inspect.signature(varlen.varlen_attn)


class FlashKernel:
    """Stands in for ``varlen_attn``: takes what that takes, and remembers it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.was_deterministic: list[bool] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        bound = REAL_SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        self.calls.append(given)
        left, right = given["window_size"]
        assert right == 0, "never into the future"
        attended = attend_packed(
            given["query"],
            given["key"],
            given["value"],
            given["cu_seq_q"].tolist(),
            given["scale"],
            None if left == -1 else left + 1,
        )
        if attended.requires_grad:
            attended.register_hook(self._note)
        return attended

    def _note(self, _gradient: Tensor) -> None:
        self.was_deterministic.append(torch.are_deterministic_algorithms_enabled())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FlashKernel:
    kernel = FlashKernel()
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    return kernel


def heads(num_rows: int, *, num_kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)

    def drawn(num_heads: int) -> Tensor:
        return torch.randn(num_heads, num_rows, 8, generator=generator).requires_grad_()

    return drawn(4), drawn(num_kv_heads), drawn(num_kv_heads)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_it_attends_and_flows_back_as_the_plan_for_cpu_does(
    kernel: FlashKernel, window: int | None, num_kv_heads: int
) -> None:
    bounds = [0, 5, 6, 17]
    theirs: list[Any] = []
    ours: list[Any] = []
    for plan, kept in (
        (PackedAttention(bounds), theirs),
        (VarlenAttention(bounds, 20, CPU), ours),
    ):
        inputs = heads(20, num_kv_heads=num_kv_heads)
        attended_TNH = plan.attend(0, *inputs, 0.3, window)[:17]
        torch.manual_seed(1)
        attended_TNH.backward(torch.randn_like(attended_TNH))  # type: ignore[no-untyped-call]
        kept += [attended_TNH.detach(), *(each.grad for each in inputs)]

    close(ours[0], theirs[0], FORWARD[torch.float32])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        close(mine, other, GRADIENT[torch.float32])


def test_surplus_rows_are_a_sequence_of_their_own(kernel: FlashKernel) -> None:
    plan = VarlenAttention([0, 5, 17], 32, CPU)

    attended_TNH = plan.attend(0, *heads(32), 0.3, None)

    assert kernel.calls[0]["cu_seq_q"].tolist() == [0, 5, 17, 32]
    assert kernel.calls[0]["cu_seq_q"].dtype is torch.int32
    assert kernel.calls[0]["max_q"] == kernel.calls[0]["max_k"] == 15
    assert attended_TNH.isfinite().all()


def test_a_pack_of_single_tokens_is_not_called_with_one_query_each(kernel: FlashKernel) -> None:
    VarlenAttention([0, 1, 2], 2, CPU).attend(0, *heads(2), 0.3, None)

    assert kernel.calls[0]["max_q"] == 2


def test_a_window_is_told_without_the_query_itself(kernel: FlashKernel) -> None:
    plan = VarlenAttention([0, 9], 9, CPU)

    plan.attend(0, *heads(9), 0.3, 4)
    plan.attend(0, *heads(9), 0.3, None)

    assert [call["window_size"] for call in kernel.calls] == [(3, 0), (-1, 0)]


def test_only_the_backward_of_attention_is_made_deterministic(kernel: FlashKernel) -> None:
    inputs = heads(9)
    attended_TNH = VarlenAttention([0, 9], 9, CPU).attend(0, *inputs, 0.3, None)
    assert not torch.are_deterministic_algorithms_enabled()

    attended_TNH.sum().backward()  # type: ignore[no-untyped-call]

    assert kernel.was_deterministic == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_sums_leave_the_settings_as_they_were() -> None:
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]

    with pytest.raises(ValueError, match="inside"), deterministic_sums():
        raise ValueError("inside")

    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is fills  # type: ignore[attr-defined]


def test_only_what_needs_a_gradient_gets_one(kernel: FlashKernel) -> None:
    query, key, value = heads(9)
    plan = VarlenAttention([0, 9], 9, CPU)

    plan.attend(0, query, key.detach(), value, 0.3, None).sum().backward()  # type: ignore[no-untyped-call]

    assert query.grad is not None
    assert value.grad is not None
    assert key.grad is None


def test_without_gradients_no_graph_is_built(kernel: FlashKernel) -> None:
    with torch.no_grad():
        attended_TNH = VarlenAttention([0, 9], 9, CPU).attend(0, *heads(9), 0.3, None)

    assert not attended_TNH.requires_grad


@pytest.mark.parametrize(
    ("device", "dtype", "head_size", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, 128, (9, 0), True),
        ("cuda", torch.float16, 256, (8, 0), True),
        ("cuda", torch.float32, 128, (9, 0), False),
        ("cuda", torch.bfloat16, 264, (9, 0), False),
        ("cuda", torch.bfloat16, 100, (9, 0), False),
        ("cuda", torch.bfloat16, 128, (7, 5), False),
        ("cpu", torch.bfloat16, 128, (9, 0), False),
    ],
)
def test_the_kernel_is_used_where_it_computes_what_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    head_size: int,
    capability: tuple[int, int],
    expected: bool,
) -> None:
    def found(_device: torch.device) -> tuple[int, int]:
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", found)

    assert is_supported(torch.device(device), dtype, head_size) is expected


def test_a_cpu_gets_a_call_per_length() -> None:
    plan = packed_attention([0, 3], device=CPU, dtype=torch.bfloat16, head_size=8)

    assert isinstance(plan, PackedAttention)


def test_a_gpu_gets_one_call_for_all_rows_that_the_base_model_aligns(
    monkeypatch: pytest.MonkeyPatch, kernel: FlashKernel
) -> None:
    def always(*_: object) -> bool:
        return True

    monkeypatch.setattr("cyclora_workers.packed_plan.is_supported", always)

    plan = packed_attention([0, 3], device=CPU, dtype=torch.float32, head_size=8)
    plan.attend(0, *heads(32), 0.3, None)

    assert isinstance(plan, cuda_varlen.VarlenAttention)
    assert kernel.calls[0]["cu_seq_k"].tolist() == [0, 3, 32]
