"""Accuracy of a model on the pair task, sampled at temperature 1."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cyclora_workers.tiny_chat.pairsum import draw_problem, is_right


def pair_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_problems: int,
    seed: int,
    batch_size: int = 100,
) -> float:
    """Share of held-out problems answered rightly, one sample each."""
    rng = Random(seed)
    problems = [draw_problem(rng, held_out=True) for _ in range(num_problems)]
    torch.manual_seed(seed)
    num_right = 0
    for start in range(0, num_problems, batch_size):
        batch = problems[start : start + batch_size]
        prompts = [problem.prompt() for problem in batch]
        answers = sample_answers(model, tokenizer, prompts, do_sample=True)
        num_right += sum(map(is_right, batch, answers))
    return num_right / num_problems


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    do_sample: bool,
) -> list[str]:
    """One answer for each user message, drawn at temperature 1 or greedily."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    # Padded on the left, so that every row is continued from the end of its prompt.
    encoded = cast(Any, tokenizer).pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {}
    with torch.inference_mode():
        output = cast(Any, model).generate(
            **encoded, do_sample=do_sample, max_new_tokens=64, **options
        )
    new_tokens = output[:, encoded["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
