"""Fused attention modules against the plain ones of transformers.

Legend: T packed tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cyclora_workers.base_model import BaseModel
from cyclora_workers.fused_attention import FusedAttention
from cyclora_workers.fused_norm import FusedRMSNorm
from workers.builders import ARCHITECTURES, CPU, VOCAB_SIZE, load, packed, positions

LENGTHS = [40, 3, 21]


def modules(base_model: BaseModel, kind: type[nn.Module]) -> list[nn.Module]:
    inner: nn.Module = base_model._inner  # pyright: ignore[reportPrivateUsage]
    return [module for module in inner.modules() if isinstance(module, kind)]


def plain_hidden(model: PreTrainedModel, tokens_T: Tensor) -> Tensor:
    """Of each sequence by itself, by plain transformers."""
    inner: Any = model.get_decoder()
    return torch.cat(
        [inner(input_ids=part[None]).last_hidden_state[0] for part in tokens_T.split(LENGTHS)]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_attention_and_norm_of_a_known_family_is_fused(
    architecture: str, dtype: torch.dtype, tmp_path: Any
) -> None:
    base_model = load(ARCHITECTURES[architecture](), tmp_path, dtype)

    assert len(modules(base_model, FusedAttention)) == base_model.num_layers
    norms_of_a_layer = 4 if architecture == "qwen3" else 2
    assert len(modules(base_model, FusedRMSNorm)) == norms_of_a_layer * base_model.num_layers + 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_those_of_plain_transformers(architecture: str, tmp_path: Any) -> None:
    plain = ARCHITECTURES[architecture]()
    base_model = load(plain, tmp_path)
    tokens_T = torch.randint(0, VOCAB_SIZE, (sum(LENGTHS),))

    with torch.no_grad():
        found_TD = base_model.hidden(tokens_T, positions(LENGTHS), packed(LENGTHS))
        expected_TD = plain_hidden(plain, tokens_T)

    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_plain_transformers(architecture: str, tmp_path: Any) -> None:
    """By the output of the embedding, through every layer."""
    plain = ARCHITECTURES[architecture]()
    base_model = load(plain, tmp_path)
    tokens_T = torch.randint(0, VOCAB_SIZE, (sum(LENGTHS),))
    dy_TD = torch.randn(sum(LENGTHS), base_model.hidden_size)
    inner: Any = base_model._inner  # pyright: ignore[reportPrivateUsage]
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        found.append(leaf)
        return leaf

    inner.embed_tokens.register_forward_hook(keep)
    hidden_TD = base_model.hidden(tokens_T, positions(LENGTHS), packed(LENGTHS))
    (ours,) = torch.autograd.grad(hidden_TD, found, dy_TD)
    plain.get_input_embeddings().register_forward_hook(keep)
    expected_TD = plain_hidden(plain, tokens_T)
    theirs = torch.autograd.grad(expected_TD, found[1:], dy_TD)

    torch.testing.assert_close(
        ours[0, : sum(LENGTHS)], torch.cat([part[0] for part in theirs]), rtol=1e-3, atol=1e-4
    )


def test_attention_that_computes_something_else_stays_as_it_is(tmp_path: Any) -> None:
    """Each looks as a known one does; the numbers tell."""
    model: Any = ARCHITECTURES["llama"]()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="cyclora")
    first, second = (layer.self_attn for layer in loaded.model.layers)
    plain_forward = first.forward

    def doubled(**given: Any) -> tuple[Tensor, None]:
        attended, _ = plain_forward(**given)
        return 2 * attended, None

    first.forward = doubled
    BaseModel("tests/tiny", loaded, CPU)

    assert loaded.model.layers[0].self_attn is first
    assert loaded.model.layers[1].self_attn is not second
