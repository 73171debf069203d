"""Training through the official SDK."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import tinker
from tinker import types

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]


def cycle_of(future: tinker.APIFuture[types.ForwardBackwardOutput]) -> int:
    return int(future.result().metrics["clock_cycle:unique"])


def test_training_lowers_the_loss(new_model: NewModel) -> None:
    losses = train(new_model(), [datum(seed=i) for i in range(4)], 12)

    assert losses[-1] < losses[0] / 2


def test_a_result_has_logprobs_per_target_and_the_official_metrics(new_model: NewModel) -> None:
    output = new_model().forward_backward([datum(5), datum(9)], "cross_entropy").result()

    assert [len(row) for row in logprobs(output)] == [5, 9]
    assert set(output.metrics) == {"loss:sum", "clock_cycle:unique"}
    total = -sum(sum(row) for row in logprobs(output))
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)


def test_forward_gives_the_same_logprobs_and_trains_nothing(new_model: NewModel) -> None:
    model = new_model()
    first = model.forward([datum()], "cross_entropy").result()
    model.optim_step(types.AdamParams(learning_rate=0.1)).result()

    second = model.forward([datum()], "cross_entropy").result()

    assert logprobs(first) == logprobs(second)


def test_k_pipelined_steps_use_k_consecutive_cycles(new_model: NewModel) -> None:
    model = new_model()
    # While this runs all steps arrive; else a slow client's first one would be split.
    model.forward([datum(200)] * 40, "cross_entropy")
    futures = []
    for _ in range(6):
        futures.append(model.forward_backward([datum(200)] * 4, "cross_entropy"))
        model.optim_step(types.AdamParams(learning_rate=1e-3))

    cycles = [cycle_of(future) for future in futures]

    assert [cycle - cycles[0] for cycle in cycles] == [0, 1, 2, 3, 4, 5]


def test_awaiting_in_between_uses_two_cycles_per_step(new_model: NewModel) -> None:
    model = new_model()
    cycles: list[int] = []
    for _ in range(3):
        future = model.forward_backward([datum()], "cross_entropy")
        cycles.append(cycle_of(future))
        model.optim_step(types.AdamParams(learning_rate=1e-3)).result()

    assert [cycle - cycles[0] for cycle in cycles] == [0, 2, 4]


def test_tenants_that_submit_at_once_share_cycles(up: Running, new_model: NewModel) -> None:
    models = [new_model(f"sharing-{i}") for i in range(3)]
    data = [datum(100, seed=i) for i in range(4)]

    with ThreadPoolExecutor(3) as threads:
        for started in [threads.submit(train, model, data, 6) for model in models]:
            started.result()

    shared = [row for row in up.cycles() if row["num_tenants"] >= 2]
    assert shared
    assert max(row["num_tokens"] for row in shared) >= 800


def test_many_chunks_are_one_batch(new_model: NewModel) -> None:
    data = [datum(3, seed=i) for i in range(1500)]  # the SDK cuts at 1024 data

    output = new_model().forward_backward(data, "cross_entropy").result()

    assert len(output.loss_fn_outputs) == 1500
    total = -sum(sum(row) for row in logprobs(output))
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-4)
    assert {"loss:sum", "clock_cycle:unique", "clock_cycle:unique_1"} == set(output.metrics)


def test_chunks_accumulate_the_gradient_of_separate_calls(new_model: NewModel) -> None:
    """Sent in parallel, the first one last; what they add up to does not depend on arrival."""
    data = [datum(2, seed=i) for i in range(1100)]
    found: list[list[list[float]]] = []
    for calls in ([data], [data[:1024], data[1024:]]):
        model = new_model(seed=3)
        for each in calls:
            model.forward_backward(each, "cross_entropy")
        model.optim_step(types.AdamParams(learning_rate=1e-2))
        found.append(logprobs(model.forward(data[:5], "cross_entropy").result()))

    assert found[0] == found[1]


def test_passes_accumulate_until_a_step_and_no_longer(new_model: NewModel) -> None:
    norms: list[float] = []
    model = new_model()
    for num_passes in (1, 2, 0):
        for _ in range(num_passes):
            model.forward_backward([datum()], "cross_entropy")
        metrics = model.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics
        assert metrics is not None
        norms.append(metrics["grad_norm"])

    assert norms == [norms[0], pytest.approx(2 * norms[0]), 0.0]


def test_the_capabilities_name_the_built_in_model(up: Running) -> None:
    capabilities = up.rest().get_server_capabilities().result()

    assert BASE_MODEL in [model.model_name for model in capabilities.supported_models]


def test_get_info_tells_the_model_and_its_rank(new_model: NewModel) -> None:
    info = new_model(rank=4).get_info()

    assert info.model_data.model_name == BASE_MODEL
    assert info.lora_rank == 4
    assert info.is_lora


def test_the_tokenizer_is_found_on_the_same_machine(new_model: NewModel) -> None:
    tokenizer = new_model().get_tokenizer()

    assert tokenizer.decode(tokenizer.encode("What is the sky?")) == "What is the sky?"


def test_training_runs_are_listed_newest_first(up: Running, new_model: NewModel) -> None:
    names = [new_model("lister", rank=rank).model_id for rank in (2, 4)]

    runs = up.rest("lister").list_training_runs().result().training_runs

    assert [run.training_run_id for run in runs] == names[::-1]
    assert [run.lora_rank for run in runs] == [4, 2]
