"""The built-in model's tokenizer, and a base model that has it."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import cyclora_workers.tiny_chat as tiny_chat
from cyclora_core.samples import SampledSequence, SampleResult, StopReason
from cyclora_core.types import BaseModelInfo
from cyclora_server.inference.tokenizer import TextTokenizer, Tokenizers
from server.doubles.builders import BASE
from server.doubles.checkpoints import StorageDouble

FOLDER = Path(tiny_chat.__file__).parent / "model"
FILES = ("tokenizer.json", "tokenizer_config.json")
TURN_END = 2
CHAT: BaseModelInfo = dataclasses.replace(
    BASE,
    name="cyclora/tiny-chat",
    vocab_size=2048,
    max_context_length=256,
    eos_token_ids=(TURN_END,),
    tokenizer_files=FILES,
)


class TokenizerStorage(StorageDouble):
    """Serves the built-in model's tokenizer; ``changed`` holds files in place of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: dict[str, bytes] = {}
        self.num_reads = 0

    def tokenizer_file(self, base_model: str, name: str) -> bytes:
        self.num_reads += 1
        return self.changed.get(name) or (FOLDER / name).read_bytes()


@cache
def tokenizer() -> TextTokenizer:
    return Tokenizers(TokenizerStorage())._load(CHAT)  # pyright: ignore[reportPrivateUsage]


def tokens_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


def result(*texts: str, reason: StopReason = StopReason.STOP, **prompt: Any) -> SampleResult:
    """A sequence of each text, ended by the end of the turn if it stopped; logprobs -1, -2, ..."""
    sequences: list[SampledSequence] = []
    for text in texts:
        tokens = tokens_of(text) + ([TURN_END] if reason is StopReason.STOP else [])
        logprobs = -np.arange(1, len(tokens) + 1, dtype=np.float32)
        sequences.append(SampledSequence(np.asarray(tokens, np.int32), logprobs, reason))
    return SampleResult(sequences, **prompt)
