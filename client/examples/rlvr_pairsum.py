"""Reinforcement learning with a verifiable reward: a model learns to show its work.

The task: add adjacent pairs of numbers, then multiply the sums, so 3 5 2 4 gives (3+5)*(2+4) = 48.
The reward is computed, not learned: 1.0 for the right number and 0.1 for putting a number between
the tags. Each step samples 8 answers to each of 8 problems, compares every answer with the mean of
its group, and pushes the adapter towards what was better than the mean.

What you should see on ``cyclora/tiny-chat``: about 30 % of the answers are right at first, because
the model guesses more often than it calculates, and more than 90 % after 30 steps.

    python rlvr_pairsum.py --plot pairsum.png
"""

from __future__ import annotations

import argparse
import random
import re
import time
from typing import Any

import tinker
from tinker import types

try:  # get_tokenizer() then works from any machine, without the Hugging Face hub
    from cyclora_client.connect import connect
except ImportError:  # the official SDK alone, against the hosted service
    connect = tinker.ServiceClient

TINY_CHAT = "cyclora/tiny-chat"
PROMPT = (
    "Add adjacent pairs, then multiply the sums: {numbers}. "
    "Give the result as <answer>NUMBER</answer>."
)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Reinforcement learning on the pair task.")
    parser.add_argument("--base-url", help="server; default: TINKER_BASE_URL")
    parser.add_argument("--api-key", help="key; default: TINKER_API_KEY")
    parser.add_argument("--base-model", default=TINY_CHAT)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--problems", type=int, default=8, help="problems in a step")
    parser.add_argument("--samples", type=int, default=8, help="answers sampled to each problem")
    parser.add_argument("--max-number", type=int, default=6, help="raise it for larger models")
    parser.add_argument("--max-tokens", type=int, default=64, help="raise it for wordy models")
    parser.add_argument("--learning-rate", type=float, help="default: 5e-4 on tiny-chat, else 1e-4")
    parser.add_argument("--normalize", action="store_true", help="divide advantages by the std")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    parser.add_argument("--plot", help="write reward and accuracy of each step to this PNG")
    options = parser.parse_args()
    options.learning_rate = options.learning_rate or (
        5e-4 if options.base_model == TINY_CHAT else 1e-4
    )
    return options


def score(numbers: list[int], text: str) -> tuple[float, bool]:
    """Reward and correctness of one answer."""
    found = re.search(r"<answer>\s*(\d+)\s*</answer>", text)
    if found is None:
        return 0.0, False
    is_right = int(found.group(1)) == (numbers[0] + numbers[1]) * (numbers[2] + numbers[3])
    return (1.1 if is_right else 0.1), is_right


def compare(rewards: list[float], *, normalize: bool) -> list[float]:
    """Advantages of a group: by how much each reward exceeds the group's mean."""
    mean = sum(rewards) / len(rewards)
    advantages = [reward - mean for reward in rewards]
    std = (sum(advantage**2 for advantage in advantages) / len(advantages)) ** 0.5
    return [advantage / std for advantage in advantages] if normalize and std else advantages


def make_datum(prompt: list[int], sequence: types.SampledSequence, advantage: float) -> types.Datum:
    """One datum: target i is the token after input i; targets inside the prompt carry zeros."""
    assert sequence.logprobs is not None, "the server returned no log-probabilities"
    tokens = prompt + sequence.tokens
    zeros = [0.0] * (len(prompt) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64"),
            "logprobs": types.TensorData(data=zeros + sequence.logprobs, dtype="float32"),
            "advantages": types.TensorData(
                data=zeros + [advantage] * len(sequence.tokens), dtype="float32"
            ),
        },
    )


def draw_plot(path: str, rewards: list[float], accuracies: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = range(1, len(rewards) + 1)
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(steps, rewards, label="mean reward", color="tab:orange")
    axes.plot(steps, accuracies, label="accuracy", color="tab:blue")
    axes.set(xlabel="step", ylim=(0, 1.15), title="pair task")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    options = read_options()
    rng = random.Random(options.seed)
    service = connect(base_url=options.base_url, api_key=options.api_key)
    training_client = service.create_lora_training_client(
        options.base_model, rank=options.rank
    ).result()
    tokenizer: Any = training_client.get_tokenizer()
    sampling_client = training_client.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=options.max_tokens, temperature=1.0)

    mean_rewards: list[float] = []
    accuracies: list[float] = []
    for step in range(options.steps):
        started_mono_s = time.monotonic()
        problems = [
            [rng.randint(1, options.max_number) for _ in range(4)] for _ in range(options.problems)
        ]
        prompts: list[list[int]] = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": PROMPT.format(numbers=" ".join(map(str, numbers)))}],
                add_generation_prompt=True,
                return_dict=False,
                enable_thinking=False,  # read by the templates of thinking models
            )
            for numbers in problems
        ]
        # All problems are submitted before the first is awaited: the server decodes them together.
        futures = [
            sampling_client.sample(types.ModelInput.from_ints(prompt), options.samples, params)
            for prompt in prompts
        ]

        data: list[types.Datum] = []
        rewards: list[float] = []
        num_right = 0
        for numbers, prompt, future in zip(problems, prompts, futures, strict=True):
            sequences = future.result().sequences
            texts = [tokenizer.decode(sequence.tokens) for sequence in sequences]
            scores = [score(numbers, text) for text in texts]
            group_rewards = [reward for reward, _ in scores]
            rewards += group_rewards
            num_right += sum(is_right for _, is_right in scores)
            advantages = compare(group_rewards, normalize=options.normalize)
            # A group whose answers are all equally good teaches nothing: its gradient is zero.
            if max(group_rewards) > min(group_rewards):
                data += map(make_datum, [prompt] * len(sequences), sequences, advantages)

        mean_rewards.append(sum(rewards) / len(rewards))
        accuracies.append(num_right / len(rewards))
        print(
            f"step {step + 1:2d}  reward {mean_rewards[-1]:.3f}  accuracy {accuracies[-1]:.3f}"
            f"  {len(data)} datums  {time.monotonic() - started_mono_s:.1f} s sampling",
            flush=True,
        )
        if data:
            # All three are submitted at once; the server keeps their order.
            passed = training_client.forward_backward(data, "importance_sampling")
            stepped = training_client.optim_step(
                types.AdamParams(learning_rate=options.learning_rate)
            )
            saved = training_client.save_weights_and_get_sampling_client()
            passed.result()
            stepped.result()
            sampling_client = saved.result()

    window = max(1, min(5, options.steps // 2))
    first = sum(accuracies[:window]) / window
    last = sum(accuracies[-window:]) / window
    print(f"accuracy of the first {window} steps {first:.3f}, of the last {window} {last:.3f}")
    if options.plot:
        draw_plot(options.plot, mean_rewards, accuracies)
        print(f"drawn in {options.plot}")


if __name__ == "__main__":
    main()
