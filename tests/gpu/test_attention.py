"""torch's flash kernel, as we call it, against SDPA in fp32 on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cyclora_workers.attention import PackedAttention
from cyclora_workers.context import AttentionPlan
from cyclora_workers.packed_plan import packed_attention
from parity.tolerances import FORWARD, GRADIENT, close

pytestmark = pytest.mark.gpu

BOUNDS = [0, 1, 40, 300, 301, 900]
NUM_ROWS = 928


def attended(
    plan: AttentionPlan, device: torch.device, dtype: torch.dtype, kv: int, window: int | None
) -> list[Tensor]:
    """Output of the planned rows, and the gradients of query, key and value."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(NUM_ROWS, n, 64, generator=generator).to(device, dtype).requires_grad_()
        for n in (8, kv, kv)
    ]
    query, key, value = (each.transpose(0, 1) for each in inputs)
    out_TNH = plan.attend(0, query, key, value, 0.125, window)[: BOUNDS[-1]]
    gradient = torch.randn(out_TNH.shape, generator=generator).to(device, dtype)
    out_TNH.backward(gradient)  # type: ignore[no-untyped-call]
    found = [out_TNH.detach()]
    for each in inputs:
        assert each.grad is not None
        found.append(each.grad)
    return [each.cpu() for each in found]


@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("num_kv_heads", [1, 4, 8])
def test_one_flash_call_equals_sdpa_per_sequence(
    cuda: torch.device, num_kv_heads: int, window: int | None
) -> None:
    plan = packed_attention(BOUNDS, device=cuda, dtype=torch.bfloat16, head_size=64)
    cpu = torch.device("cpu")

    ours = attended(plan, cuda, torch.bfloat16, num_kv_heads, window)
    theirs = attended(PackedAttention(BOUNDS), cpu, torch.float32, num_kv_heads, window)

    close(ours[0], theirs[0], FORWARD[torch.bfloat16])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        close(mine, other, GRADIENT[torch.bfloat16])


def test_the_same_pack_gives_the_same_bits_again(cuda: torch.device) -> None:
    plan = packed_attention(BOUNDS, device=cuda, dtype=torch.bfloat16, head_size=64)

    first = attended(plan, cuda, torch.bfloat16, 2, None)

    for _ in range(5):
        again = attended(plan, cuda, torch.bfloat16, 2, None)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
