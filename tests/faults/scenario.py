"""One training run through the official SDK, and everything of it that must come out the same."""

from __future__ import annotations

import hashlib
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, TypeVar

import tinker
from tinker import types

from contract.builders import datum, logprobs
from contract.conftest import BASE_MODEL
from faults.deployment import Deployment

RESULT_TIMEOUT_S = 60.0
"""A future that takes longer counts as lost."""

T = TypeVar("T")


class Stage(Enum):
    """Moments when all that was sent is settled; what comes next is named."""

    PIPELINED = auto()
    """Passes, steps and a save, sent without awaiting any of them."""
    STEPPING = auto()
    """A single optim_step, which therefore is in a cycle of its own."""
    LOADING = auto()
    """A load, with a pass and a step sent behind it."""
    HANDING_OVER = auto()
    """A save for a sampler without a name."""
    SAMPLING = auto()
    """A sample from the weights saved just before."""
    SAVING = auto()
    """A single save."""


@dataclass
class Record:
    """What a run left behind; two runs are equal when these are, bit for bit."""

    losses: list[float] = field(default_factory=list[float])
    logprobs: list[list[list[float]]] = field(default_factory=list[list[list[float]]])
    steps: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    samples: list[tuple[list[int], list[float]]] = field(
        default_factory=list[tuple[list[int], list[float]]]
    )
    files: dict[str, str] = field(default_factory=dict[str, str])
    """SHA-256 of every checkpoint file, by path below the model's folder."""
    usage: dict[str, int] = field(default_factory=dict[str, int])
    charged: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """By run, key and project."""

    def differences(self, expected: Record) -> list[str]:
        """What differs, in words."""
        names = ("losses", "logprobs", "steps", "samples", "files", "usage", "charged")
        return [
            f"{name}: {getattr(self, name)} instead of {getattr(expected, name)}"
            for name in names
            if getattr(self, name) != getattr(expected, name)
        ]


class Run:
    """One training run in a tenant of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._tenant_id, api_key = deployment.new_tenant(f"run-{uuid.uuid4().hex[:8]}")
        self._service = tinker.ServiceClient(base_url=deployment.base_url, api_key=api_key)
        self._record = Record()
        self.finished_s: list[float] = []
        """When each result arrived, monotonic."""
        self.model_id = ""

    def play(self, reached: Callable[[Stage], None] = lambda _: None) -> Record:
        """Run everything; ``reached`` is called at each stage."""
        with self._service:
            self._play(reached)
        return self.collect()

    def collect(self) -> Record:
        """The record with what storage and store hold now."""
        self._record.files = self._files()
        self._record.usage = self._deployment.usage(self._tenant_id)
        self._record.charged = self._deployment.charged(self._tenant_id)
        return self._record

    def _play(self, reached: Callable[[Stage], None]) -> None:
        creating = self._service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        model = self._result(creating)
        self.model_id = model.model_id
        self._await([*self._train(model, 0)])

        reached(Stage.PIPELINED)
        first, second = self._train(model, 1), self._train(model, 2)
        saving = model.save_state("kept")
        third = self._pass(model, 3)
        self._await([*first, *second])
        path = self._result(saving).path
        self._await([third])

        reached(Stage.STEPPING)
        self._await([self._step(model)])

        reached(Stage.LOADING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated by the SDK, and served by us
            loading = model.load_state_with_optimizer(path)  # pyright: ignore[reportDeprecated]
        following = self._train(model, 4)
        self._result(loading)
        self._await([*following])

        reached(Stage.HANDING_OVER)
        sampler = self._result(model.save_weights_and_get_sampling_client())
        reached(Stage.SAMPLING)
        params = types.SamplingParams(max_tokens=12, seed=3, temperature=1.0, stop=[])
        prompt = types.ModelInput.from_ints([5, 6, 7, 8, 9])
        sampling = sampler.sample(prompt, num_samples=2, sampling_params=params)
        sequences = self._result(sampling).sequences
        self._record.samples = [(each.tokens, list(each.logprobs or [])) for each in sequences]
        self._await([model.forward([datum(seed=9)], "cross_entropy")])

        reached(Stage.SAVING)
        self._result(model.save_state("last"))

    def _train(self, model: tinker.TrainingClient, seed: int) -> tuple[Any, Any]:
        return self._pass(model, seed), self._step(model)

    def _pass(self, model: tinker.TrainingClient, seed: int) -> Any:
        data = [datum(12 + i, seed=10 * seed + i) for i in range(3)]
        return model.forward_backward(data, "cross_entropy")

    def _step(self, model: tinker.TrainingClient) -> Any:
        return model.optim_step(types.AdamParams(learning_rate=1e-2))

    def _await(self, futures: list[Any]) -> None:
        for future in futures:
            self._note(self._result(future))

    def _note(self, result: Any) -> None:
        if isinstance(result, types.ForwardBackwardOutput):
            self._record.losses.append(result.metrics["loss:sum"])
            self._record.logprobs.append(logprobs(result))
        else:
            self._record.steps.append(dict(result.metrics))

    def _result(self, future: Any) -> Any:
        result = future.result(timeout=RESULT_TIMEOUT_S)
        self.finished_s.append(time.monotonic())
        return result

    def _files(self) -> dict[str, str]:
        folder = self._deployment.storage / "checkpoints" / self.model_id
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _is_left_over(path.relative_to(folder))
        }


def _is_left_over(path: Path) -> bool:
    """Whether a file belongs to a save that was cut off; the next try writes another folder."""
    return any(part.startswith(".") for part in path.parts)
