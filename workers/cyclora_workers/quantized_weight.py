"""Frozen weights kept in 8 or 4 bits, and made dense for each product (decision 0041).

Legend: F features out, D features in, G groups of ``GROUP_SIZE`` features in, C codes of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclora_core.types import BaseWeights
from cyclora_workers.architecture import UnsupportedModel, decoder_layers, is_mixture
from cyclora_workers.frozen_weight import DenseWeight, FrozenWeight

GROUP_SIZE = 64
"""Features in that share a scale and a minimum in 4 bits: these add half a bit to a weight in
bfloat16. Smaller groups are more exact and need more memory."""

_INT8_LARGEST = 127
_INT4_LARGEST = 15
_PART_ROWS = 256


class QuantizedWeight(FrozenWeight, nn.Module):
    """A weight in fewer bits; a module, so that it moves to a device with its base model."""

    num_elements: int
    """Of the dense matrix."""


class Int8Weight(QuantizedWeight):
    """Symmetric 8 bits with a scale per feature out.

    ::

        scale[f] = max_d |W[f, d]| / 127;   W'[f, d] = scale[f] * round(W[f, d] / scale[f])

    Scales have the weight's dtype, and codes are chosen for the scales as rounded to it.
    """

    def __init__(self, weight_FD: Tensor) -> None:
        super().__init__()
        codes_FD, scales_F1 = _by_parts(_int8, weight_FD)
        self.num_elements = weight_FD.numel()
        self.codes_FD: Tensor
        self.register_buffer("codes_FD", codes_FD)
        self.scales_F1: Tensor
        self.register_buffer("scales_F1", scales_F1)

    def dense(self) -> Tensor:
        return self.codes_FD.to(self.scales_F1.dtype).mul_(self.scales_F1)


class Int4Weight(QuantizedWeight):
    """Four bits with a scale and a minimum per feature out and group of features in.

    ::

        scale[f, g] = (max W[f, g] - min W[f, g]) / 15
        W'[f, g, c] = min W[f, g] + scale[f, g] * round((W[f, g, c] - min W[f, g]) / scale[f, g])

    Two codes share a byte: the low half holds one of the first half of its group. The last group
    is filled up with zeros. Scales have the weight's dtype, and codes are chosen for the scales as
    rounded to it.
    """

    def __init__(self, weight_FD: Tensor) -> None:
        super().__init__()
        pairs_FGC, scales_FG1, minima_FG1 = _by_parts(_int4, weight_FD)
        self.in_features = weight_FD.shape[1]
        self.num_elements = weight_FD.numel()
        self.pairs_FGC: Tensor
        self.register_buffer("pairs_FGC", pairs_FGC)
        self.scales_FG1: Tensor
        self.register_buffer("scales_FG1", scales_FG1)
        self.minima_FG1: Tensor
        self.register_buffer("minima_FG1", minima_FG1)

    def dense(self) -> Tensor:
        codes_FGC = torch.cat((self.pairs_FGC & _INT4_LARGEST, self.pairs_FGC >> 4), 2)
        weight_FGC = codes_FGC.to(self.scales_FG1.dtype).mul_(self.scales_FG1)
        weight_FGC += self.minima_FG1
        return weight_FGC.flatten(1)[:, : self.in_features].contiguous()


def _int8(weight_FD: Tensor) -> tuple[Tensor, ...]:
    """Codes and scales."""
    largest_F1 = weight_FD.abs().amax(1, keepdim=True).float()
    scales_F1 = _scales(largest_F1, _INT8_LARGEST, weight_FD.dtype)
    codes_FD = (weight_FD.float() / scales_F1.float()).round_()
    return codes_FD.clamp_(-_INT8_LARGEST, _INT8_LARGEST).to(torch.int8), scales_F1


def _int4(weight_FD: Tensor) -> tuple[Tensor, ...]:
    """Pairs of codes, scales and minima."""
    num_out, num_in = weight_FD.shape
    filled_FD = functional.pad(weight_FD, (0, -num_in % GROUP_SIZE))
    groups_FGC = filled_FD.float().view(num_out, -1, GROUP_SIZE)
    minima_FG1 = groups_FGC.amin(2, keepdim=True)
    groups_FGC = groups_FGC - minima_FG1
    scales_FG1 = _scales(groups_FGC.amax(2, keepdim=True), _INT4_LARGEST, weight_FD.dtype)
    codes_FGC = (groups_FGC / scales_FG1.float()).round_().clamp_(0, _INT4_LARGEST)
    low_FGC, high_FGC = codes_FGC.to(torch.uint8).split(GROUP_SIZE // 2, 2)
    return low_FGC | (high_FGC << 4), scales_FG1, minima_FG1.to(weight_FD.dtype)


def _by_parts(
    quantize: Callable[[Tensor], tuple[Tensor, ...]], weight_FD: Tensor
) -> Iterator[Tensor]:
    """Quantise some features out at a time: fp32 copies of a whole layer would outweigh it."""
    parts = [quantize(part) for part in weight_FD.split(_PART_ROWS)]
    return map(torch.cat, zip(*parts, strict=True))


def _scales(largest: Tensor, num_steps: int, dtype: torch.dtype) -> Tensor:
    """``largest / num_steps``, and 1 where that is too small for the dtype: nothing is lost there.

    Raises:
        UnsupportedModel: a weight is infinite or no number, and its code would hide it.
    """
    if not torch.isfinite(largest).all():
        raise UnsupportedModel("a weight is not finite; it cannot be quantised")
    scales = (largest / num_steps).to(dtype)
    return scales.where(scales > torch.finfo(dtype).tiny, 1.0)


class QuantizedLinear(nn.Module):
    """Stands in for an ``nn.Linear`` until its decoder layer gets the adapters."""

    def __init__(self, linear: nn.Linear, base_weights: Literal["int8", "int4"]) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        kind = Int8Weight if base_weights == "int8" else Int4Weight
        self.weight: QuantizedWeight = kind(linear.weight.detach())
        self.bias = linear.bias


def frozen_weight(linear: nn.Linear | QuantizedLinear) -> FrozenWeight:
    """The weight of a layer, as its products want it."""
    weight = linear.weight
    return weight if isinstance(weight, QuantizedWeight) else DenseWeight(weight)


@torch.no_grad()
def quantize_linears(model: Any, base_weights: Literal["int8", "int4"]) -> None:
    """Quantise the linear layers of the decoder layers; each dense weight is dropped at once.

    Embedding, norms and unembedding stay, as copies: parameters that are part of a mapped file
    would keep all of it in memory, with the dense weights beside them.
    """
    found = [
        (layer.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2])
        for layer in decoder_layers(model.get_decoder())
        for path, linear in layer.named_modules()
        if type(linear) is nn.Linear
    ]
    dense = {parent.get_submodule(child).weight for parent, child in found}
    for parameter in model.parameters():
        if parameter not in dense:
            parameter.data = parameter.data.clone()
    dense.clear()
    for parent, child in found:
        linear: Any = parent.get_submodule(child)
        setattr(parent, child, QuantizedLinear(linear, base_weights))


def num_quantized_elements(model: nn.Module) -> int:
    """How many weights the model has that are no parameters any more."""
    return sum(m.num_elements for m in model.modules() if isinstance(m, QuantizedWeight))


def check_base_weights(base_weights: BaseWeights, config: object) -> None:
    """Refuse by configuration, before any weight is read.

    Raises:
        UnsupportedModel: a mixture of experts, most of whose weights would stay as they are.
    """
    if base_weights != "as_loaded" and is_mixture(config):
        raise UnsupportedModel(
            f"base_weights is {base_weights}, and the base model is a mixture of experts; "
            "supported for these is as_loaded"
        )
