"""Train, save, load, sample and list through whichever SDK is installed beside it.

Run as a program in the environment of one SDK version, with the server's URL, an API key and a base
model as arguments. It uses what every version since 0.7 has, under the names they share, and prints
one JSON object: the version, and ``null`` or the error of each step in the order they ran.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Step = Callable[["Run"], None]
STEPS: dict[str, Step] = {}

NUM_TOKENS = 12
MANY = 150
"""Data of one pass: above 128, where the oldest versions begin to send several requests."""


def step(run: Step) -> Step:
    STEPS[run.__name__] = run
    return run


@dataclass
class Run:
    """What the steps share."""

    service: Any
    types: Any
    base_model: str
    model: Any = None
    paths: dict[str, str] = field(default_factory=dict[str, str])

    def datum(self, seed: int) -> Any:
        ids = [10 + (seed * 7919 + i * 104729) % 400 for i in range(NUM_TOKENS + 1)]
        tensor = self.types.TensorData
        return self.types.Datum(
            model_input=self.types.ModelInput.from_ints(ids[:-1]),
            loss_fn_inputs={
                "target_tokens": tensor(data=ids[1:], dtype="int64", shape=[NUM_TOKENS]),
                "weights": tensor(data=[1.0] * NUM_TOKENS, dtype="float32", shape=[NUM_TOKENS]),
            },
        )

    def policy_datum(self, logprobs: list[float]) -> Any:
        datum = self.datum(0)
        tensor = self.types.TensorData
        inputs = {
            "target_tokens": datum.loss_fn_inputs["target_tokens"],
            "logprobs": tensor(data=logprobs, dtype="float32", shape=[NUM_TOKENS]),
            "advantages": tensor(data=[0.5] * NUM_TOKENS, dtype="float32", shape=[NUM_TOKENS]),
        }
        return self.types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)

    def losses(self, model: Any, num_steps: int) -> list[float]:
        passes: list[Any] = []
        for _ in range(num_steps):
            passes.append(model.forward_backward([self.datum(0)], "cross_entropy"))
            model.optim_step(self.types.AdamParams(learning_rate=3e-3))
        return [each.result().metrics["loss:sum"] for each in passes]

    def logprobs(self, model: Any) -> list[float]:
        output = model.forward([self.datum(0)], "cross_entropy").result()
        return list(output.loss_fn_outputs[0]["logprobs"].data)

    def rest(self) -> Any:
        return self.service.create_rest_client()


@step
def capabilities(run: Run) -> None:
    names = [each.model_name for each in run.service.get_server_capabilities().supported_models]

    assert run.base_model in names, names


@step
def create(run: Run) -> None:
    run.model = run.service.create_lora_training_client(run.base_model, rank=4, seed=3)
    info = run.model.get_info()

    assert info.lora_rank == 4
    assert info.model_data.model_name == run.base_model


@step
def train(run: Run) -> None:
    losses = run.losses(run.model, 3)

    assert losses[2] < losses[1] < losses[0], losses


@step
def forward_is_the_loss(run: Run) -> None:
    output = run.model.forward([run.datum(0)], "cross_entropy").result()
    logprobs = output.loss_fn_outputs[0]["logprobs"].data

    assert len(logprobs) == NUM_TOKENS
    assert math.isclose(-sum(logprobs), output.metrics["loss:sum"], rel_tol=1e-4)


@step
def many_data(run: Run) -> None:
    data = [run.datum(i) for i in range(MANY)]
    output = run.model.forward_backward(data, "cross_entropy").result()
    # Nothing of it may reach the weights: what follows compares numbers.
    run.model.optim_step(run.types.AdamParams(learning_rate=0.0)).result()
    total = -sum(sum(row["logprobs"].data) for row in output.loss_fn_outputs)

    assert len(output.loss_fn_outputs) == MANY
    assert math.isclose(total, output.metrics["loss:sum"], rel_tol=1e-4)


@step
def policy_losses(run: Run) -> None:
    datum = run.policy_datum(run.logprobs(run.model))
    for loss_fn in ("importance_sampling", "ppo"):
        output = run.model.forward_backward([datum], loss_fn).result()

        # Ratios of 1 and advantages of 1/2.
        loss = output.metrics["loss:sum"]
        assert math.isclose(loss, -0.5 * NUM_TOKENS, rel_tol=1e-3), (loss_fn, loss)
    run.model.optim_step(run.types.AdamParams(learning_rate=0.0)).result()


@step
def custom_loss(run: Run) -> None:
    def loss(_data: Any, logprobs_list: list[Any]) -> tuple[Any, dict[str, float]]:
        value = -logprobs_list[0].sum()
        return value, {"mine": float(value.detach())}

    output = run.model.forward_backward_custom([run.datum(0)], loss).result()
    run.model.optim_step(run.types.AdamParams(learning_rate=0.0)).result()

    assert output.metrics["mine"] > 0


@step
def save(run: Run) -> None:
    run.paths["state"] = run.model.save_state("state").result().path
    run.paths["sampler"] = run.model.save_weights_for_sampler("sampler").result().path

    assert run.paths["state"] == f"tinker://{run.model.model_id}/weights/state"
    assert run.paths["sampler"] == f"tinker://{run.model.model_id}/sampler_weights/sampler"


@step
def resume(run: Run) -> None:
    service, path = run.service, run.paths["state"]
    resumed = service.create_training_client_from_state_with_optimizer(path)
    fresh = service.create_training_client_from_state(path)
    straight = run.losses(run.model, 3)

    assert resumed.get_info().lora_rank == 4
    assert run.losses(resumed, 3) == straight
    restarted = run.losses(fresh, 3)
    assert restarted[0] == straight[0]
    assert restarted[2] != straight[2]


@step
def load(run: Run) -> None:
    trained = run.logprobs(run.model)
    run.model.load_state(run.paths["state"]).result()
    loaded = run.logprobs(run.model)
    run.model.load_state_with_optimizer(run.paths["state"]).result()

    assert loaded != trained
    assert run.logprobs(run.model) == loaded


def check_sampler(run: Run, sampler: Any) -> None:
    prompt = run.types.ModelInput.from_ints([20, 21, 22])
    params = run.types.SamplingParams(max_tokens=5, seed=11, stop=[3])
    sampled = sampler.sample(prompt, num_samples=2, sampling_params=params).result()
    again = sampler.sample(prompt, num_samples=2, sampling_params=params).result()

    assert len(sampled.sequences) == 2
    for sequence in sampled.sequences:
        assert 1 <= len(sequence.tokens) <= 5
        assert sequence.logprobs is not None
        assert len(sequence.logprobs) == len(sequence.tokens)
        assert sequence.stop_reason in ("stop", "length")
    assert [each.tokens for each in again.sequences] == [each.tokens for each in sampled.sequences]


@step
def sample_saved_weights(run: Run) -> None:
    check_sampler(run, run.service.create_sampling_client(model_path=run.paths["sampler"]))


@step
def sample_current_weights(run: Run) -> None:
    check_sampler(run, run.model.save_weights_and_get_sampling_client(name="current"))


@step
def sample_the_base_model(run: Run) -> None:
    check_sampler(run, run.service.create_sampling_client(base_model=run.base_model))


@step
def prompt_logprobs(run: Run) -> None:
    sampler = run.model.save_weights_and_get_sampling_client(name="logprobs")
    datum = run.datum(0)
    tokens = [*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].data[-1]]
    logprobs = sampler.compute_logprobs(run.types.ModelInput.from_ints(tokens)).result()
    trained = run.logprobs(run.model)

    assert logprobs[0] is None
    assert len(logprobs) == len(trained) + 1
    for ours, theirs in zip(logprobs[1:], trained, strict=True):
        assert math.isclose(ours, theirs, abs_tol=1e-4)


@step
def topk_prompt_logprobs(run: Run) -> None:
    sampler = run.service.create_sampling_client(base_model=run.base_model)
    result = sampler.sample(
        run.types.ModelInput.from_ints([20, 21, 22]),
        num_samples=1,
        sampling_params=run.types.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
    ).result()

    assert result.topk_prompt_logprobs[0] is None
    assert [len(row) for row in result.topk_prompt_logprobs[1:]] == [2, 2]
    for row in result.topk_prompt_logprobs[1:]:
        assert row[0][1] >= row[1][1]


@step
def asynchronous(run: Run) -> None:
    async def main() -> tuple[float, int]:
        model = await run.service.create_lora_training_client_async(run.base_model, rank=4)
        passed = await model.forward_backward_async([run.datum(0)], "cross_entropy")
        stepped = await model.optim_step_async(run.types.AdamParams(learning_rate=1e-3))
        loss = (await passed.result_async()).metrics["loss:sum"]
        await stepped.result_async()
        sampler = await model.save_weights_and_get_sampling_client_async("asynchronous")
        sampled = await sampler.sample_async(
            run.types.ModelInput.from_ints([20, 21]), 3, run.types.SamplingParams(max_tokens=2)
        )
        return loss, len(sampled.sequences)

    loss, num_sequences = asyncio.run(main())

    assert loss > 0
    assert num_sequences == 3


@step
def errors(run: Run) -> None:
    bad = run.types.Datum(
        model_input=run.types.ModelInput.from_ints([5, 999_999]),
        loss_fn_inputs=run.datum(0).loss_fn_inputs,
    )
    message = "nothing was raised"
    try:
        run.model.forward_backward([bad], "cross_entropy").result()
    except Exception as error:  # noqa: BLE001 - its class differs between versions
        message = str(error)

    assert "999999" in message
    assert run.losses(run.model, 1)[0] > 0


@step
def runs(run: Run) -> None:
    rest = run.rest()
    found = rest.get_training_run(run.model.model_id).result()
    listed = rest.list_training_runs(limit=100).result()
    by_path = rest.get_training_run_by_tinker_path(run.paths["state"]).result()

    assert found.training_run_id == by_path.training_run_id == run.model.model_id
    assert found.lora_rank == 4
    assert run.model.model_id in [each.training_run_id for each in listed.training_runs]


@step
def checkpoints(run: Run) -> None:
    rest = run.rest()
    of_run = rest.list_checkpoints(run.model.model_id).result().checkpoints
    of_tenant = rest.list_user_checkpoints(limit=100).result().checkpoints
    paths = set(run.paths.values())

    assert paths <= {each.tinker_path for each in of_run}
    assert paths <= {each.tinker_path for each in of_tenant}
    assert {"training", "sampler"} == {each.checkpoint_type for each in of_run}


@step
def weights_info(run: Run) -> None:
    info = run.rest().get_weights_info_by_tinker_path(run.paths["state"]).result()

    assert info.base_model == run.base_model
    assert info.is_lora
    assert info.lora_rank == 4


@step
def sessions(run: Run) -> None:
    rest = run.rest()
    session_id = run.model.model_id.split(":")[0]
    session = rest.get_session(session_id).result()

    assert run.model.model_id in session.training_run_ids
    assert session.sampler_ids
    assert session_id in rest.list_sessions(limit=100).result().sessions
    sampler = rest.get_sampler(session.sampler_ids[0])
    assert (sampler.result() if hasattr(sampler, "result") else sampler).base_model


@step
def publish(run: Run) -> None:
    rest, path = run.rest(), run.paths["sampler"]
    rest.publish_checkpoint_from_tinker_path(path).result()

    assert is_public(run, path)
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not is_public(run, path)


def is_public(run: Run, path: str) -> bool:
    found = run.rest().list_checkpoints(run.model.model_id).result().checkpoints
    return next(each.public for each in found if each.tinker_path == path)


@step
def ttl(run: Run) -> None:
    rest = run.rest()
    if hasattr(rest, "set_checkpoint_ttl_from_tinker_path"):
        rest.set_checkpoint_ttl_from_tinker_path(run.paths["sampler"], 7200).result()


@step
def archive(run: Run) -> None:
    rest = run.rest()
    if hasattr(rest, "get_checkpoint_archive_url_from_tinker_path"):
        answer = rest.get_checkpoint_archive_url_from_tinker_path(run.paths["sampler"]).result()

        assert answer.url.startswith("http")


@step
def delete(run: Run) -> None:
    rest = run.rest()
    rest.delete_checkpoint_from_tinker_path(run.paths["state"]).result()
    left = rest.list_checkpoints(run.model.model_id).result().checkpoints

    assert run.paths["state"] not in {each.tinker_path for each in left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("api_key")
    parser.add_argument("base_model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    import tinker
    from tinker import types

    service = tinker.ServiceClient(base_url=options.base_url, api_key=options.api_key)
    run = Run(service, types, options.base_model)
    outcomes: dict[str, str | None] = {}
    for name, each in STEPS.items():
        try:
            each(run)
        except Exception as error:  # noqa: BLE001 - reported, and the other steps still run
            traceback.print_exc()
            outcomes[name] = f"{type(error).__name__}: {error}"[:1000]
        else:
            outcomes[name] = None
    print(json.dumps({"version": importlib.metadata.version("tinker"), "steps": outcomes}))
    # Threads of some versions outlive their clients, and nothing is left for them to do.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
