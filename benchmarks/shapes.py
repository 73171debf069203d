"""The models that are measured: the built-in one, and random weights in larger shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclora_workers import tiny_chat


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen3 network, layers x width; ``folder`` writes one with random weights."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int

    def folder(self, scratch: Path) -> Path:
        """Where the model lies as ``from_pretrained`` expects it; made on first use."""
        if self.name == TINY.name:
            return tiny_chat.model_dir()
        folder = scratch / self.name.replace(" ", "")
        if not folder.exists():
            _write(self, folder)
        return folder


# The built-in model, so that the smallest shape is one that people really run.
TINY = Shape("4 x 256", 4, 256, 640, 4, 2, 64, 2048)
SHAPES = (
    TINY,
    Shape("8 x 512", 8, 512, 1536, 8, 4, 64, 4096),
    # A layer of Qwen3-0.6B; two of its 28, and a part of its vocabulary.
    Shape("2 x 1024", 2, 1024, 3072, 16, 8, 128, 8192),
)


def _write(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    # Tokens mean nothing to random weights: any tokenizer will do where one is asked for.
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((tiny_chat.model_dir() / file).read_text())
