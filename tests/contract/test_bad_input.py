"""Bad input is a clear error that names the offending value, and the client goes on working."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tinker
from tinker import types

from contract.builders import datum, policy_datum, train
from contract.conftest import BASE_MODEL

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]


def tensor(values: list[Any], dtype: Any) -> types.TensorData:
    return types.TensorData(data=values, dtype=dtype, shape=[len(values)])


def edited(**inputs: types.TensorData) -> types.Datum:
    good = datum(4)
    return types.Datum(
        model_input=good.model_input, loss_fn_inputs={**good.loss_fn_inputs, **inputs}
    )


def with_tokens(tokens: list[int]) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens),
        loss_fn_inputs={
            "target_tokens": tensor([1] * len(tokens), "int64"),
            "weights": tensor([1.0] * len(tokens), "float32"),
        },
    )


def without(key: str) -> types.Datum:
    good = datum(4)
    inputs = {name: value for name, value in good.loss_fn_inputs.items() if name != key}
    return types.Datum(model_input=good.model_input, loss_fn_inputs=inputs)


CASES: dict[str, tuple[list[types.Datum], str, dict[str, float] | None, str]] = {
    "token outside the vocabulary": ([with_tokens([5, 999_999])], "cross_entropy", None, "999999"),
    "negative token": ([with_tokens([5, -3])], "cross_entropy", None, "-3"),
    "target outside the vocabulary": (
        [edited(target_tokens=tensor([1, 2, 3, 888_888], "int64"))],
        "cross_entropy",
        None,
        "888888",
    ),
    "mismatched lengths": (
        [edited(weights=tensor([1.0, 1.0], "float32"))],
        "cross_entropy",
        None,
        "weights",
    ),
    "missing loss input": ([without("weights")], "cross_entropy", None, "weights"),
    "unknown loss input": (
        [edited(loss_mask=tensor([1.0] * 4, "float32"))],
        "cross_entropy",
        None,
        "loss_mask",
    ),
    "unknown loss": ([datum(4)], "cross_entropi", None, "cross_entropi"),
    "unknown config key": ([policy_datum()], "ppo", {"clip_epsilon": 0.2}, "clip_epsilon"),
    "too long a sequence": ([with_tokens([5] * 60_000)], "cross_entropy", None, "60000"),
    "not a number": (
        [edited(weights=tensor([1.0, float("nan"), 1.0, 1.0], "float32"))],
        "cross_entropy",
        None,
        "weights",
    ),
    "loss not supported": ([policy_datum()], "stable_reinforce", None, "stable_reinforce"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_pass_names_what_is_wrong_and_the_next_request_works(
    new_model: NewModel, case: str
) -> None:
    data, loss_fn, config, named = CASES[case]
    model = new_model()

    with pytest.raises(tinker.RequestFailedError, match=named):
        model.forward_backward(data, loss_fn, config).result()  # type: ignore[arg-type]

    losses = train(model, [datum(4)], 2)
    assert losses[1] < losses[0]


def test_a_bad_datum_beside_a_good_one_fails_the_whole_request(new_model: NewModel) -> None:
    model = new_model()

    with pytest.raises(tinker.RequestFailedError, match="999999"):
        model.forward_backward([datum(4), with_tokens([999_999])], "cross_entropy").result()


def test_a_failed_request_in_a_pipeline_holds_up_nothing(new_model: NewModel) -> None:
    model = new_model()
    good = model.forward_backward([datum(4)], "cross_entropy")
    bad = model.forward_backward([with_tokens([999_999])], "cross_entropy")
    step = model.optim_step(types.AdamParams(learning_rate=1e-2))

    assert good.result().metrics["loss:sum"] > 0
    with pytest.raises(tinker.RequestFailedError):
        bad.result()
    assert step.result().metrics is not None


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (types.AdamParams(learning_rate=-1.0), "-1"),
        (types.AdamParams(learning_rate=float("inf")), "learning_rate"),
        (types.AdamParams(beta1=1.5), "beta1"),
        (types.AdamParams(weight_decay=-0.1), "weight_decay"),
    ],
)
def test_a_bad_optimizer_step_is_refused(
    new_model: NewModel, params: types.AdamParams, named: str
) -> None:
    model = new_model()

    with pytest.raises((tinker.RequestFailedError, ValueError), match=named):
        model.optim_step(params).result()

    assert train(model, [datum(4)], 1)[0] > 0


def test_an_unknown_base_model_is_named(service: tinker.ServiceClient) -> None:
    with pytest.raises(Exception, match="nobody/nothing"):
        service.create_lora_training_client("nobody/nothing", rank=8).result()

    assert (
        service.create_lora_training_client(BASE_MODEL, rank=8).result().get_info().lora_rank == 8
    )


def test_a_rank_beyond_the_limit_is_named(service: tinker.ServiceClient) -> None:
    with pytest.raises(Exception, match="100000"):
        service.create_lora_training_client(BASE_MODEL, rank=100_000).result()


def test_empty_data_is_refused(new_model: NewModel) -> None:
    model = new_model()

    with pytest.raises(Exception, match=r"[Ee]mpty|at least one|No data"):
        model.forward_backward([], "cross_entropy").result()

    assert train(model, [datum(4)], 1)[0] > 0


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (types.SamplingParams(max_tokens=0), "max_tokens"),
        (types.SamplingParams(max_tokens=4, temperature=-1.0), "temperature"),
        (types.SamplingParams(max_tokens=4, top_p=0.0), "top_p"),
        (types.SamplingParams(max_tokens=1_000_000), "1000000"),
        (types.SamplingParams(max_tokens=4, stop=[999_999]), "999999"),
    ],
)
def test_bad_sampling_params_are_refused_and_the_client_goes_on(
    service: tinker.ServiceClient, params: types.SamplingParams, named: str
) -> None:
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    prompt = types.ModelInput.from_ints([5, 6, 7])

    with pytest.raises(tinker.RequestFailedError, match=named):
        sampler.sample(prompt, num_samples=1, sampling_params=params).result()

    good = types.SamplingParams(max_tokens=3)
    assert sampler.sample(prompt, num_samples=1, sampling_params=good).result().sequences


def test_a_prompt_token_outside_the_vocabulary_is_named(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    prompt = types.ModelInput.from_ints([5, 777_777])

    with pytest.raises(tinker.RequestFailedError, match="777777"):
        sampler.sample(
            prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=3)
        ).result()
