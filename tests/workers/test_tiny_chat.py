"""The built-in model: small, able to talk, and neither too good nor too bad at the pair task."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from random import Random
from typing import Any

import pytest

from cyclora_workers.tiny_chat import MODEL_NAME, model_dir
from cyclora_workers.tiny_chat.corpus import draw_chats
from cyclora_workers.tiny_chat.pairsum import (
    Problem,
    careful_answer,
    draw_problem,
    hasty_answer,
    is_right,
)

MAX_MODEL_BYTES = 10_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir())


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir()).eval()


def test_all_files_together_stay_under_ten_megabytes() -> None:
    num_bytes = sum(path.stat().st_size for path in model_dir().iterdir())

    assert num_bytes < MAX_MODEL_BYTES


def test_importing_the_package_loads_no_torch() -> None:
    """The server and the client side ask for name and folder without paying for torch."""
    code = "import cyclora_workers.tiny_chat as t, sys; print(t.MODEL_NAME, 'torch' in sys.modules)"
    path = str(model_dir().parents[2])

    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert shown.split() == [MODEL_NAME, "False"]


def test_every_width_is_a_multiple_of_64() -> None:
    """Kernels on accelerators want aligned shapes; the built-in model must not be the odd one."""
    config = json.loads((model_dir() / "config.json").read_text())
    widths = [config[name] for name in ("hidden_size", "intermediate_size", "head_dim")]

    assert [width % 64 for width in [*widths, config["vocab_size"]]] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France?",
        "  two  spaces,\n\na line\tand a tab ",
        "Z\u00fcrich, na\u00efve, \u4f60\u597d, \U0001f642",
        "3+5=8, 2+4=6, 8*6=48. <answer>48</answer>",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert text == tokenizer.decode(tokenizer.encode(text))


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("1234567890")]

    assert list("1234567890") == pieces


def test_template_opens_the_assistant_turn_only_when_asked(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "Be polite."}, {"role": "user", "content": "Hi"}]
    closed = "<|im_start|>system\nBe polite.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"

    rendered = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asked)
        for asked in (False, True)
    ]

    assert [closed, closed + "<|im_start|>assistant\n"] == rendered


def test_the_end_of_a_turn_is_one_token_and_ends_generation(tokenizer: Any, model: Any) -> None:
    ids = tokenizer.encode("<|im_end|>")

    assert [tokenizer.eos_token_id] == ids
    assert [model.generation_config.eos_token_id] == ids


def test_training_tokens_are_those_of_the_chat_template(tokenizer: Any) -> None:
    """The corpus is encoded piece by piece; a difference would train on text nobody sends."""
    from cyclora_workers.tiny_chat.build import encode_chat

    for chat in islice(draw_chats(3), 50):
        messages = [message._asdict() for message in chat]
        expected = tokenizer.apply_chat_template(messages, return_dict=False)
        ids, _ = encode_chat(tokenizer.backend_tokenizer, chat, 0.1)

        assert expected == ids


def test_equal_seeds_give_equal_chats() -> None:
    first, again, other = (list(islice(draw_chats(seed), 200)) for seed in (5, 5, 6))

    assert first == again
    assert first != other


def test_careful_answers_are_right_step_by_step() -> None:
    rng = Random(0)
    for held_out in (False, True):
        for _ in range(200):
            problem = draw_problem(rng, held_out=held_out)
            text = careful_answer(problem)
            for step in text.split(".")[0].split(", "):
                left, right = step.split("=")
                operator = "+" if "+" in left else "*"
                a, b = map(int, left.split(operator))

                assert (a + b if operator == "+" else a * b) == int(right)
            assert is_right(problem, text)


def test_an_answer_without_the_tags_is_not_right() -> None:
    problem = Problem(3, 5, 2, 4)

    assert is_right(problem, "<answer>48</answer>")
    assert not is_right(problem, "It is 48.")
    assert not is_right(problem, "<answer>84</answer>")


def test_hasty_answers_are_seldom_right() -> None:
    rng = Random(0)
    problems = [draw_problem(rng, held_out=False) for _ in range(1000)]
    num_right = sum(is_right(problem, hasty_answer(problem, rng)) for problem in problems)

    assert 0 < num_right < 100


def test_it_answers_simple_questions(tokenizer: Any, model: Any) -> None:
    from cyclora_workers.tiny_chat.measure import sample_answers

    questions = ["What is the capital of France?", "What colour is grass?", "What is 3 plus 4?"]
    expected = ["The capital of France is Paris.", "Grass is green.", "3+4=7"]

    answers = sample_answers(model, tokenizer, questions, do_sample=False)

    assert expected == answers


def test_untrained_it_solves_about_a_third_of_the_pair_task(tokenizer: Any, model: Any) -> None:
    """Room to improve, and enough right answers for reinforcement learning to start from."""
    from cyclora_workers.tiny_chat.measure import pair_accuracy

    accuracy = pair_accuracy(model, tokenizer, num_problems=300, seed=0)

    assert 0.2 <= accuracy <= 0.4
