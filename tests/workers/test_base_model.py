"""The base model computes what plain transformers computes, or refuses to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DiffLlamaConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MiniCPM3Config,
    NemotronConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    StableLmConfig,
)

from cyclora_workers.adapter import ModuleGroup
from cyclora_workers.architecture import UnsupportedModel
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import Segment
from cyclora_workers.logit_rule import LogitRule
from parity.tolerances import FORWARD, close
from workers.builders import (
    ARCHITECTURES,
    CPU,
    VOCAB_SIZE,
    llama,
    load,
    packed,
    positions,
    qwen3,
    random_adapter,
)


def tokens(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(seed)
    )


def base_logits(base_model: BaseModel, lengths: list[int], tokens_T: Tensor) -> Tensor:
    context = packed(lengths)
    with torch.no_grad():
        hidden_TD = base_model.hidden(tokens_T, positions(lengths), context)
        return base_model.logits(hidden_TD, context.segments)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_logits_equal_those_of_plain_transformers(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    plain: Any = ARCHITECTURES[architecture]()
    base_model = load(plain, tmp_path, dtype)
    reference = plain.to(dtype).float()
    lengths = [17, 1, 30, 4]
    tokens_T = tokens(sum(lengths))

    logits_TV = base_logits(base_model, lengths, tokens_T)

    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        with torch.no_grad():
            expected_TV = reference(tokens_T[rows][None]).logits[0]
        close(logits_TV[rows], expected_TV, FORWARD[dtype])
        start += length
    assert logits_TV.dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sequence_has_the_same_bits_alone_and_in_a_pack(
    architecture: str, tmp_path: Path
) -> None:
    base_model = load(ARCHITECTURES[architecture](), tmp_path)
    lengths = [3, 50, 1, 21]
    tokens_T = tokens(sum(lengths))
    packed_TV = base_logits(base_model, lengths, tokens_T)

    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        assert torch.equal(base_logits(base_model, [length], tokens_T[rows]), packed_TV[rows])
        start += length


def test_a_single_rows_logits_have_the_bits_of_the_whole(tmp_path: Path) -> None:
    base_model = load(qwen3(), tmp_path)
    weights = random_adapter(base_model, 3, 0).weights
    hidden_TD = torch.randn(40, base_model.hidden_size)
    whole_TV = base_model.logits(hidden_TD, [Segment(0, 40, weights)])

    for row in (0, 13, 39):
        alone_TV = base_model.logits(hidden_TD[row : row + 1], [Segment(0, 1, weights)])
        assert torch.equal(alone_TV[0], whole_TV[row])


def test_it_tells_what_sampling_needs_to_know(tmp_path: Path) -> None:
    base_model = load(qwen3(), tmp_path)

    assert base_model.num_layers == 2
    assert base_model.num_kv_heads == 2
    assert base_model.head_size == 16
    assert base_model.vocab_size == VOCAB_SIZE
    assert base_model.max_context_length == 128
    assert base_model.eos_token_ids == (3,)
    assert base_model.architecture == "Qwen3ForCausalLM"
    assert (base_model.dtype, base_model.device) == (torch.float32, CPU)


def test_the_generation_config_decides_which_tokens_end_a_text(tmp_path: Path) -> None:
    plain = qwen3()
    plain.generation_config.eos_token_id = [5, 6]  # type: ignore[union-attr]

    assert load(plain, tmp_path).eos_token_ids == (5, 6)


def test_target_modules_are_named_as_in_the_causal_lm(tmp_path: Path) -> None:
    targets = load(llama(), tmp_path).target_modules

    first = [(t.name, t.in_features, t.out_features, t.group) for t in targets[:7:6]]
    assert first == [
        ("model.layers.0.self_attn.q_proj", 32, 32, ModuleGroup.ATTN),
        ("model.layers.0.mlp.down_proj", 48, 32, ModuleGroup.MLP),
    ]
    assert targets[-1].name == "lm_head"
    assert len(targets) == 2 * 7 + 1


def test_the_base_model_is_frozen_and_no_graph_is_built_for_it(tmp_path: Path) -> None:
    base_model = load(qwen3(), tmp_path)

    hidden_TD = base_model.hidden(tokens(5), positions([5]), packed([5]))

    assert not hidden_TD.requires_grad
    assert hidden_TD.shape == (5, base_model.hidden_size)


def test_two_base_models_in_one_process_do_not_see_each_other(tmp_path: Path) -> None:
    first, second = load(qwen3(), tmp_path / "a"), load(llama(), tmp_path / "b")
    weights = random_adapter(first, 4, 0).weights
    alone_TD = second.hidden(tokens(5), positions([5]), packed([5]))
    context = packed([5], [Segment(0, 5, weights)])

    class Nested:
        """Runs the second model in the midst of a pass of the first."""

        def attend(self, *arguments: Any, **named: Any) -> Tensor:
            nested_TD = second.hidden(tokens(5), positions([5]), packed([5]))
            assert torch.equal(nested_TD, alone_TD)
            return context.attention.attend(*arguments, **named)

    expected_TD = first.hidden(tokens(5), positions([5]), context)
    nested = type(context)(context.segments, Nested())

    assert torch.equal(first.hidden(tokens(5), positions([5]), nested), expected_TD)


def test_a_pass_that_fails_does_not_block_the_next(tmp_path: Path) -> None:
    base_model = load(qwen3(), tmp_path)

    class Broken:
        def attend(self, *arguments: Any, **named: Any) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        base_model.hidden(tokens(5), positions([5]), type(packed([5]))([], Broken()))

    assert base_model.hidden(tokens(5), positions([5]), packed([5])).shape[0] == 5


_SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
_QUANTIZED: dict[str, Any] = {"quantization_config": {"quant_method": "fp8"}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen2MoeConfig(**_SHAPE, num_experts=2), "mixture of experts"),
        (Gemma2Config(**_SHAPE, attn_logit_softcapping=5.0), "attn_logit_softcapping = 5.0"),
        (NemotronConfig(**_SHAPE), "does not hand on the arguments"),
        (StableLmConfig(**_SHAPE), "does not let its attention be replaced"),
        (DiffLlamaConfig(**_SHAPE), "supported is once per layer"),
        (MiniCPM3Config(**_SHAPE), "compresses keys and values"),
        (
            GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
            "no list of decoder layers",
        ),
        (LlamaConfig(**_SHAPE, **_QUANTIZED), "stored quantised"),
        (
            qwen3(
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ).config,
            "rope_type 'dynamic'",
        ),
    ],
    ids=[
        "experts",
        "attention cap",
        "dropped arguments",
        "own attention",
        "two attentions",
        "compressed keys",
        "no linear layers",
        "quantised",
        "rope",
    ],
)
def test_an_architecture_that_would_be_computed_wrongly_is_refused(
    config: PreTrainedConfig, message: str, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel, match=message):
        BaseModel.load("tests/tiny", tmp_path, dtype=torch.float32, device=CPU)


def test_a_model_that_does_more_for_its_logits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CohereConfig(**_SHAPE, logit_scale=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    def forgetful(_config: Any) -> LogitRule:
        return LogitRule()

    monkeypatch.setattr(LogitRule, "of", forgetful)

    with pytest.raises(UnsupportedModel, match="more for its logits"):
        BaseModel.load("tests/tiny", tmp_path, dtype=torch.float32, device=CPU)
