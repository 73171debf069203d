"""tinker-cookbook's own training loops on toy data; a program of the cookbook's environment.

    loops.py NAME --base-url URL --log-path FOLDER [--checkpoint PATH]

Nothing of the cookbook is changed: each loop gets a dataset of ours and otherwise its own defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chz
import datasets
from tinker_cookbook.distillation import train_on_policy
from tinker_cookbook.distillation.datasets import (
    DistillationDatasetConfig,
    PromptOnlyDataset,
    TeacherConfig,
)
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonDatasetBuilder
from tinker_cookbook.preference.types import Comparison, LabeledComparison
from tinker_cookbook.renderers import Renderer, get_renderer
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder
from tinker_cookbook.supervised import train as sl_train
from tinker_cookbook.supervised.data import SupervisedDatasetFromHFDataset, conversation_to_datum
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDataset,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer

MODEL = "cyclora/tiny-chat"
RENDERER = "qwen3_instruct"
"""The renderer whose format the built-in model speaks."""

QUESTIONS = ["How are you?", "Who bakes bread?", "Can fish swim?", "Good morning!"] * 4
PROBLEMS = [(1 + i % 6, 1 + i % 5, 1 + i % 3, 1 + i % 4) for i in range(16)]
CRASH_AT = int(os.environ.get("CRASH_AT_BATCH", "-1"))
"""Batch of the supervised loop at which the process dies without any farewell."""


def chat_renderer() -> Renderer:
    return get_renderer(RENDERER, get_tokenizer(MODEL))


def common_config(batch_size: int) -> ChatDatasetBuilderCommonConfig:
    return ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=MODEL,
        renderer_name=RENDERER,
        max_length=256,
        batch_size=batch_size,
    )


class CrashingDataset(SupervisedDatasetFromHFDataset):
    def get_batch(self, index: int) -> list[Any]:
        if index == CRASH_AT:
            os._exit(9)
        return super().get_batch(index)


@chz.chz
class FooChats(ChatDatasetBuilder):
    """Every question is answered "foo"."""

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        renderer = self.renderer

        def to_datum(row: dict[str, str]) -> Any:
            chat: Any = [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": "foo"},
            ]
            return conversation_to_datum(chat, renderer, self.common_config.max_length)

        rows = datasets.Dataset.from_dict({"question": QUESTIONS})
        held_out = datasets.Dataset.from_dict({"question": ["What do bees make?", "Tell me more."]})
        return (
            CrashingDataset(rows, self.common_config.batch_size, map_fn=to_datum),
            SupervisedDatasetFromHFDataset(held_out, 2, map_fn=to_datum),
        )


@chz.chz
class FooOverBar(ComparisonDatasetBuilder):
    """Of two answers, "foo" is preferred."""

    def get_train_and_test_datasets(self) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        return datasets.Dataset.from_dict({"question": QUESTIONS}), None

    def example_to_labeled_comparison(self, example: dict[str, Any]) -> LabeledComparison:
        comparison = Comparison(
            prompt_conversation=[{"role": "user", "content": example["question"]}],
            completion_A=[{"role": "assistant", "content": "foo"}],
            completion_B=[{"role": "assistant", "content": "bar"}],
        )
        return LabeledComparison(comparison, "A")


class PairEnv(ProblemEnv):
    """Add adjacent pairs, multiply the sums: the built-in model is right about half of the time."""

    def __init__(self, numbers: tuple[int, int, int, int], renderer: Renderer) -> None:
        super().__init__(renderer, require_stop_sequence_for_format=False)
        self._numbers = numbers

    def get_question(self) -> str:
        numbers = " ".join(str(number) for number in self._numbers)
        return (
            f"Add adjacent pairs, then multiply the sums: {numbers}. "
            "Give the result as <answer>NUMBER</answer>."
        )

    def check_answer(self, sample_str: str) -> bool:
        return f"<answer>{self.get_reference_answer()}</answer>" in sample_str

    def check_format(self, sample_str: str) -> bool:
        return "<answer>" in sample_str

    def get_reference_answer(self) -> str:
        a, b, c, d = self._numbers
        return str((a + b) * (c + d))


class PairProblems(RLDataset):
    def __init__(self, groups_per_batch: int, group_size: int) -> None:
        self._groups_per_batch = groups_per_batch
        self._group_size = group_size
        self._renderer = chat_renderer()

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        start = index * self._groups_per_batch
        return [
            ProblemGroupBuilder(
                partial(PairEnv, numbers, self._renderer), self._group_size, "pairs"
            )
            for numbers in PROBLEMS[start : start + self._groups_per_batch]
        ]

    def __len__(self) -> int:
        return math.ceil(len(PROBLEMS) / self._groups_per_batch)


@chz.chz
class PairProblemsBuilder(RLDatasetBuilder):
    groups_per_batch: int = 4
    group_size: int = 4

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return PairProblems(self.groups_per_batch, self.group_size), None


@chz.chz
class PromptsBuilder(RLDatasetBuilder):
    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return PromptOnlyDataset(QUESTIONS, 4, 2, chat_renderer(), get_tokenizer(MODEL)), None


def supervised(options: argparse.Namespace) -> None:
    config = sl_train.Config(
        log_path=options.log_path,
        model_name=MODEL,
        recipe_name="toy",
        renderer_name=RENDERER,
        load_checkpoint_path=options.checkpoint,
        dataset_builder=FooChats(common_config=common_config(batch_size=4)),
        learning_rate=3e-3,
        num_epochs=2,
        base_url=options.base_url,
        save_every=3,
        rolling_save_every=2,
        eval_every=4,
        submit_ahead=0,
    )
    asyncio.run(sl_train.main(config))


def reinforce(options: argparse.Namespace, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "dataset_builder": PairProblemsBuilder(),
        "model_name": MODEL,
        "recipe_name": "toy",
        "max_tokens": 48,
        "log_path": options.log_path,
        "renderer_name": RENDERER,
        "lora_rank": 8,
        "eval_every": 0,
        "save_every": 2,
        "base_url": options.base_url,
        "max_steps": 3,
    }
    asyncio.run(rl_train.main(rl_train.Config(**{**settings, **changes})))


def reinforce_in_step(options: argparse.Namespace) -> None:
    reference = rl_train.KLReferenceConfig(base_model=MODEL)
    reinforce(
        options,
        kl_penalty_coef=0.1,
        kl_reference_config=reference,
        compute_post_kl=True,
    )


def reinforce_streaming(options: argparse.Namespace) -> None:
    streaming = rl_train.StreamMinibatchConfig(groups_per_batch=4, num_minibatches=2)
    reinforce(options, stream_minibatch_config=streaming, num_substeps=2, loss_fn="ppo")


def reinforce_off_policy(options: argparse.Namespace) -> None:
    ahead = rl_train.AsyncConfig(max_steps_off_policy=2, groups_per_batch=4)
    reinforce(options, async_config=ahead, loss_fn="cispo")


def prefer(options: argparse.Namespace) -> None:
    config = train_dpo.Config(
        log_path=options.log_path,
        model_name=MODEL,
        recipe_name="toy",
        renderer_name=RENDERER,
        dataset_builder=DPODatasetBuilderFromComparisons(
            common_config=common_config(batch_size=4), comparison_builder=FooOverBar()
        ),
        learning_rate=1e-3,
        lora_rank=8,
        base_url=options.base_url,
        save_every=2,
        max_steps=4,
    )
    train_dpo.main(config)


def distill(options: argparse.Namespace) -> None:
    teacher = TeacherConfig(base_model=MODEL, load_checkpoint_path=options.checkpoint)
    config = train_on_policy.Config(
        learning_rate=3e-3,
        dataset_configs=[
            DistillationDatasetConfig(
                dataset_builder=PromptsBuilder(), teacher_config=teacher, groups_per_batch=4
            )
        ],
        model_name=MODEL,
        recipe_name="toy",
        renderer_name=RENDERER,
        max_tokens=8,
        lora_rank=8,
        log_path=options.log_path,
        base_url=options.base_url,
        eval_every=0,
        save_every=2,
        max_steps=4,
    )
    asyncio.run(train_on_policy.main(config))


LOOPS: dict[str, Callable[[argparse.Namespace], None]] = {
    each.__name__: each
    for each in (
        supervised,
        reinforce_in_step,
        reinforce_streaming,
        reinforce_off_policy,
        prefer,
        distill,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--log-path", required=True)
    parser.add_argument("--checkpoint")
    options = parser.parse_args()
    LOOPS[options.loop](options)
    # Threads of the SDK may abort a process that shuts down in the usual way (tests/conftest.py).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
