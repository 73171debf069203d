"""The fused RMSNorm against the modules of transformers, left to autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from cyclora_workers.fused_norm import FusedRMSNorm, fuse_norms, fused_norm

SIZE = 48
NORMS: list[type[nn.Module]] = [LlamaRMSNorm, Qwen3RMSNorm, GemmaRMSNorm]


def plain(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    module = kind(SIZE, eps=1e-5)
    with torch.no_grad():
        next(module.parameters()).uniform_(0.3, 2.0)
    return module.to(dtype).requires_grad_(False)


def forward_backward(module: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, dy)
    return y.detach(), gradient


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("shape", [(1, 33, SIZE), (33, 2, SIZE)])
def test_values_and_gradients_are_those_of_transformers(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    fused = fused_norm(plain(kind))
    assert fused is not None
    x, dy = torch.randn(shape), torch.randn(shape)

    found = forward_backward(fused, x, dy)

    for mine, theirs in zip(found, forward_backward(plain(kind), x, dy), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", NORMS)
def test_in_bf16_it_is_as_close_to_fp32_as_transformers_is(kind: type[nn.Module]) -> None:
    fused = fused_norm(plain(kind, torch.bfloat16))
    assert fused is not None
    x, dy = torch.randn(64, SIZE).bfloat16(), torch.randn(64, SIZE).bfloat16()
    reference = plain(kind, torch.bfloat16).float()
    expected = forward_backward(reference, x.float(), dy.float())

    ours = forward_backward(fused, x, dy)
    theirs = forward_backward(plain(kind, torch.bfloat16), x, dy)

    for mine, other, exact in zip(ours, theirs, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - exact).norm() <= 1.05 * (other - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("num_threads")
def test_a_row_has_the_same_bits_among_any_number_of_rows(
    dtype: torch.dtype,
) -> None:
    for size in (SIZE, 50, 256):
        module = FusedRMSNorm(torch.rand(size).to(dtype), 1e-6)
        x, dy = torch.randn(1024, size).to(dtype), torch.randn(1024, size).to(dtype)
        whole = forward_backward(module, x, dy)
        for rows in (slice(0, 32), slice(96, 480), slice(32, 1024)):
            part = forward_backward(module, x[rows], dy[rows])
            for mine, theirs in zip(part, whole, strict=True):
                assert torch.equal(mine, theirs[rows])


class _Shifted(LlamaRMSNorm):
    """Looks like an RMSNorm and computes something else."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + 0.01


def test_what_computes_something_else_stays_as_it_is() -> None:
    model = nn.Sequential(nn.LayerNorm(SIZE), plain(_Shifted), nn.Linear(SIZE, 4), plain(NORMS[0]))

    assert fuse_norms(model) == 1

    assert [isinstance(module, FusedRMSNorm) for module in model] == [False, False, False, True]
