"""Making ``cyclora/tiny-chat``: a tokenizer and a small Qwen3, trained here on generated chats.

Everything follows from one seed, so a second build on the same machine gives the same files.

Shape letters: B sequences, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from cyclora_workers.tiny_chat.corpus import Message, draw_chats

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The split of the Qwen tokenizers. transformers may put its own Qwen rules in place of those in
# tokenizer.json because of the model type; equal rules make that harmless. One digit is one piece.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the build gives; the defaults made the files in ``model/``."""

    seed: int = 20261121
    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 640
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    max_positions: int = 2048
    num_tokenizer_chats: int = 20_000
    sequence_tokens: int = 256
    sequences_per_step: int = 16
    num_steps: int = 2500
    num_warmup_steps: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    grad_clip_norm: float = 1.0
    prompt_weight: float = 0.1
    """Loss weight of tokens the assistant does not write; they are mostly random, but not noise."""


def build(out: Path, recipe: Recipe) -> float:
    """Train tokenizer and model, write the files to ``out``, and return the final answer loss."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(recipe)
    save_tokenizer(tokenizer, out, recipe)
    model, loss = train_model(tokenizer, recipe)
    model.bfloat16().save_pretrained(out)
    return loss


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """A byte-level BPE tokenizer fitted to the start of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    chats = islice(draw_chats(recipe.seed), recipe.num_tokenizer_chats)
    tokenizer.train_from_iterator((m.content for chat in chats for m in chat), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, recipe: Recipe) -> None:
    """Write the two tokenizer files.

    The configuration is written by hand, because the class name that transformers 5 would write is
    unknown to transformers 4, which clients may have.
    """
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": recipe.max_positions,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode_chat(
    tokenizer: Tokenizer, chat: list[Message], prompt_weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of a chat, as the chat template renders it, and the loss weight of each."""
    ids: list[int] = []
    loss_weights: list[float] = []
    for message in chat:
        body_weight = 1.0 if message.role == "assistant" else prompt_weight
        parts = (
            (f"{TURN_START}{message.role}\n", prompt_weight),
            (f"{message.content}{TURN_END}", body_weight),
            ("\n", prompt_weight),
        )
        for text, weight in parts:
            part_ids = tokenizer.encode(text).ids
            ids += part_ids
            loss_weights += [weight] * len(part_ids)
    return ids, loss_weights


def draw_batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of ids and loss weights, both [B, T + 1].

    Every sequence starts with a fresh chat, as every prompt does when the model is used, and is
    filled up with further chats, the last of them cut off.
    """
    chats = draw_chats(recipe.seed)
    length = recipe.sequence_tokens + 1
    while True:
        batch_ids: list[list[int]] = []
        batch_weights: list[list[float]] = []
        for _ in range(recipe.sequences_per_step):
            ids: list[int] = []
            loss_weights: list[float] = []
            while len(ids) < length:
                more_ids, more_weights = encode_chat(tokenizer, next(chats), recipe.prompt_weight)
                ids += more_ids
                loss_weights += more_weights
            batch_ids.append(ids[:length])
            batch_weights.append(loss_weights[:length])
        yield torch.tensor(batch_ids), torch.tensor(batch_weights)


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < recipe.num_warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.num_warmup_steps
    done = (step - recipe.num_warmup_steps) / (recipe.num_steps - recipe.num_warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train_model(tokenizer: Tokenizer, recipe: Recipe) -> tuple[Qwen3ForCausalLM, float]:
    """Pre-train from a random start; returns the model and its mean answer loss at the end."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        head_dim=64,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(TURN_END),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, do_sample=True
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    batches = draw_batches(tokenizer, recipe)
    answer_losses: list[float] = []
    started_mono_s = time.monotonic()
    progress = tqdm(range(recipe.num_steps), unit="step", mininterval=5.0)
    for step in progress:
        ids_BT, loss_weights_BT = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        # Weights stay fp32; only the matrix products run in bf16.
        with torch.autocast("cpu", torch.bfloat16):
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        losses_T = functional.cross_entropy(
            logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
        )
        loss_weights_T = loss_weights_BT[:, 1:].flatten()
        loss = (losses_T * loss_weights_T).sum() / loss_weights_T.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        answer_losses.append(losses_T[loss_weights_T == 1.0].mean().item())
        if (step + 1) % 50 == 0:
            mean = sum(answer_losses[-50:]) / 50
            elapsed_s = time.monotonic() - started_mono_s
            progress.write(f"step {step + 1}: answer loss {mean:.4f}, {elapsed_s:.0f} s")
    return model, sum(answer_losses[-50:]) / len(answer_losses[-50:])
