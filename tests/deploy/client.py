"""What a tenant does with a deployment: ``client.py STEP BASE_URL API_KEY ...``, the SDK alone."""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

import tinker
from tinker import types

BASE_MODEL = "cyclora/tiny-chat"
TOKENS = [11, 12, 13, 14, 15, 16, 17, 18]


def datum() -> types.Datum:
    length = len(TOKENS) - 1
    inputs: dict[str, Any] = {
        "target_tokens": types.TensorData(data=TOKENS[1:], dtype="int64", shape=[length]),
        "weights": types.TensorData(data=[1.0] * length, dtype="float32", shape=[length]),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


def step(model: tinker.TrainingClient) -> float:
    """The loss before one optimizer step."""
    passed = model.forward_backward([datum()], "cross_entropy")
    stepped = model.optim_step(types.AdamParams(learning_rate=1e-3))
    stepped.result()
    return passed.result().metrics["loss:sum"]


def train(service: tinker.ServiceClient) -> dict[str, Any]:
    """Two steps with a checkpoint between them, and a sample."""
    model = service.create_lora_training_client(BASE_MODEL, rank=8, seed=0).result()
    first = step(model)
    path = model.save_state("between").result().path
    second = step(model)
    sampler = model.save_weights_and_get_sampling_client().result()
    sampled = sampler.sample(
        prompt=types.ModelInput.from_ints(TOKENS),
        num_samples=1,
        sampling_params=types.SamplingParams(max_tokens=4, temperature=0.0),
    ).result()
    tokens = list(sampled.sequences[0].tokens)
    return {"losses": [first, second], "path": path, "tokens": tokens}


def proceed(service: tinker.ServiceClient, path: str) -> dict[str, Any]:
    """The second step again, from the checkpoint."""
    model = service.create_training_client_from_state_with_optimizer(path).result()
    return {"losses": [step(model)]}


def keep_on(service: tinker.ServiceClient) -> dict[str, Any]:
    """Train and replace a checkpoint, again and again, until there is something to read."""
    model = service.create_lora_training_client(BASE_MODEL, rank=8, seed=1).result()
    num_steps = 0
    print(json.dumps({"run": step(model)}), flush=True)
    while _is_wanted():
        step(model)
        model.save_state("latest", overwrite=True).result()
        num_steps += 1
    return {"steps": num_steps}


def _is_wanted() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return not readable


def main() -> None:
    name, base_url, api_key, *rest = sys.argv[1:]
    service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
    steps: dict[str, Any] = {"train": train, "proceed": proceed, "keep_on": keep_on}
    print(json.dumps(steps[name](service, *rest)), flush=True)
    # A thread of the SDK's HTTP library that gets an answer while Python shuts down aborts it.
    os._exit(0)


if __name__ == "__main__":
    main()
