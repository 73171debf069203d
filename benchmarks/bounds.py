"""The matrix products that LoRA training cannot leave out, alone: no engine can be faster.

Legend: T packed tokens, D features in, F features out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel

# What the first layer projects from embeddings: nothing below wants a gradient.
_FIRST = re.compile(r"\.layers\.0\..*\.(q_proj|k_proj|v_proj)$")


@dataclass(frozen=True, slots=True)
class _Product:
    """One frozen weight, used once forward and, usually, once for the gradient of its input.

    Shapes:
        weight_FD.
    """

    weight_FD: Tensor
    has_input_gradient: bool

    @property
    def flops_per_token(self) -> int:
        return 2 * self.weight_FD.numel() * (2 if self.has_input_gradient else 1)


class MatrixProducts:
    """Every frozen product of one training step, over microbatches of the engine's size.

    Plain torch products of random values into buffers that exist already; so the bound is the rate
    of the matrix library at these very shapes, dtype and number of threads. Attention, norms,
    activations and all that belongs to adapters is free in it.
    """

    def __init__(self, base_model: BaseModel, num_tokens: int, max_tokens: int) -> None:
        """Plan the products of ``num_tokens`` in microbatches of at most ``max_tokens``."""
        device, dtype = base_model.device, base_model.dtype
        generator = torch.Generator(device).manual_seed(0)
        self._products = [
            _Product(
                torch.randn(
                    module.out_features,
                    module.in_features,
                    generator=generator,
                    device=device,
                    dtype=dtype,
                ),
                _FIRST.search(module.name) is None,
            )
            for module in base_model.target_modules
        ]
        sizes = [max_tokens] * (num_tokens // max_tokens)
        self._sizes: Sequence[int] = sizes + [num_tokens % max_tokens] * bool(
            num_tokens % max_tokens
        )
        self._buffers_TX: dict[int, Tensor] = {
            width: torch.randn(
                max(self._sizes), width, generator=generator, device=device, dtype=dtype
            )
            for product in self._products
            for width in product.weight_FD.shape
        }
        self._results_TX = {
            width: torch.empty_like(buffer_TX) for width, buffer_TX in self._buffers_TX.items()
        }
        self.flops = num_tokens * sum(product.flops_per_token for product in self._products)

    @torch.no_grad()
    def __call__(self) -> None:
        """All products of one step."""
        for size in self._sizes:
            for product in self._products:
                num_out, num_in = product.weight_FD.shape
                x_TD, dy_TF = self._buffers_TX[num_in][:size], self._buffers_TX[num_out][:size]
                torch.mm(x_TD, product.weight_FD.t(), out=self._results_TX[num_out][:size])
                if product.has_input_gradient:
                    torch.mm(dy_TF, product.weight_FD, out=self._results_TX[num_in][:size])
        if self._products[0].weight_FD.is_cuda:
            torch.cuda.synchronize()
