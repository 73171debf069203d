"""Teach a model to answer every question with one word, by supervised fine-tuning.

Twenty everyday questions, all answered "foo", are one batch; an epoch is one pass over it and one
optimizer step. What you should see: the mean loss of an answer token falls from several nats to
below 0.1, and a question that was not among the twenty is answered "foo" too, with stop reason
"stop" and log-probabilities near 0.

    python sft_foo.py                               # server and key from the environment
    python sft_foo.py --answer bar --name bar_v1    # another adapter, at the same time or later

A public walk-through of the same task, Qwen3-4B at learning rate 5e-4, saw the losses 15.0, 9.7,
3.1, 0.003, 0.1 in five epochs.
"""

from __future__ import annotations

import argparse
from typing import Any

import tinker
from tinker import types

try:  # get_tokenizer() then works from any machine, without the Hugging Face hub
    from cyclora_client.connect import connect
except ImportError:  # the official SDK alone, against the hosted service
    connect = tinker.ServiceClient

TINY_CHAT = "cyclora/tiny-chat"

QUESTIONS = [
    "What is the capital of France?",
    "What colour is the sky?",
    "How are you?",
    "What is your name?",
    "Who bakes bread?",
    "What does a dog say?",
    "How many days are in a week?",
    "What is the opposite of hot?",
    "What comes after Monday?",
    "What is 2 plus 3?",
    "Where does a bird live?",
    "It is raining. What should I take?",
    "What do bees make?",
    "Can fish swim?",
    "What rhymes with cat?",
    "What is bread made of?",
    "Tell me a joke.",
    "Good morning!",
    "How do you spell tree?",
    "What should I eat?",
]
FRESH_QUESTION = "Which animal do you like best?"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Teach a model to answer every question 'foo'.")
    parser.add_argument("--base-url", help="server; default: TINKER_BASE_URL")
    parser.add_argument("--api-key", help="key; default: TINKER_API_KEY")
    parser.add_argument("--base-model", default=TINY_CHAT)
    parser.add_argument("--answer", default="foo", help="what every question is answered")
    parser.add_argument("--name", default="foo_v1", help="name of the checkpoint that is saved")
    parser.add_argument("--epochs", type=int, help="default: 10 on tiny-chat, 5 elsewhere")
    parser.add_argument("--learning-rate", type=float, help="default: 3e-3 on tiny-chat, else 5e-4")
    options = parser.parse_args()

    # A model a thousand times smaller needs larger steps: its adapter has fewer ways to say "foo".
    is_tiny = options.base_model == TINY_CHAT
    options.epochs = options.epochs or (10 if is_tiny else 5)
    options.learning_rate = options.learning_rate or (3e-3 if is_tiny else 5e-4)
    return options


def prompt_tokens(tokenizer: Any, question: str) -> list[int]:
    """The question as a chat, up to where the assistant's words begin."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=False,
        enable_thinking=False,  # read by the templates of thinking models, ignored by others
    )


def make_datum(prompt: list[int], answer: list[int]) -> types.Datum:
    """One datum: target i is the token after input i, and only the answer's targets weigh."""
    tokens = prompt + answer
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64"),
            "weights": types.TensorData(
                data=[0.0] * (len(prompt) - 1) + [1.0] * len(answer), dtype="float32"
            ),
        },
    )


def mean_loss(output: types.ForwardBackwardOutput, data: list[types.Datum]) -> float:
    """Loss per weighted token; the server's own ``loss:sum`` is the numerator."""
    loss_sum = weight_sum = 0.0
    for outputs, datum in zip(output.loss_fn_outputs, data, strict=True):
        weights = datum.loss_fn_inputs["weights"].data
        loss_sum -= sum(
            logprob * weight
            for logprob, weight in zip(outputs["logprobs"].data, weights, strict=True)
        )
        weight_sum += sum(weights)
    return loss_sum / weight_sum


def main() -> None:
    options = read_options()
    service = connect(base_url=options.base_url, api_key=options.api_key)
    training_client = service.create_lora_training_client(options.base_model, rank=8).result()
    tokenizer: Any = training_client.get_tokenizer()

    # The end token belongs to the answer: without it the model would say "foo" and go on talking.
    answer = [*tokenizer.encode(options.answer, add_special_tokens=False), tokenizer.eos_token_id]
    data = [make_datum(prompt_tokens(tokenizer, question), answer) for question in QUESTIONS]

    print(f"{options.base_model}: {len(data)} datums, learning rate {options.learning_rate:g}")
    for epoch in range(options.epochs):
        # Adam's steps keep their size while the gradient vanishes; without smaller steps in the
        # second half the loss, once near 0, jumps up again now and then.
        learning_rate = options.learning_rate * min(1.0, 2 * (1 - epoch / options.epochs))
        # Both are submitted before either is awaited, so that one clock cycle can do both.
        passed = training_client.forward_backward(data, "cross_entropy")
        stepped = training_client.optim_step(types.AdamParams(learning_rate=learning_rate))
        loss = mean_loss(passed.result(), data)
        stepped.result()
        print(f"epoch {epoch + 1:2d}  loss per answer token {loss:8.4f}", flush=True)

    saved = training_client.save_weights_for_sampler(name=options.name).result()
    print(f"saved as {saved.path}")
    sampling_client = service.create_sampling_client(model_path=saved.path).result()
    prompt = types.ModelInput.from_ints(prompt_tokens(tokenizer, FRESH_QUESTION))
    params = types.SamplingParams(max_tokens=16, temperature=1.0)
    sequence = sampling_client.sample(prompt, 1, params).result().sequences[0]

    print(f"question     {FRESH_QUESTION}")
    print(f"answer       {tokenizer.decode(sequence.tokens, skip_special_tokens=True)!r}")
    print(f"stop reason  {sequence.stop_reason}")
    print(f"logprobs     {[round(logprob, 4) for logprob in sequence.logprobs or []]}")


if __name__ == "__main__":
    main()
