"""Loss functions through the official SDK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from contract.builders import datum, logprobs, policy_datum, tokens
from contract.conftest import BASE_MODEL

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]
N = 12


def with_inputs(base: types.Datum, **inputs: Any) -> types.Datum:
    return types.Datum(
        model_input=base.model_input, loss_fn_inputs={**base.loss_fn_inputs, **inputs}
    )


def floats(value: float) -> types.TensorData:
    return types.TensorData(data=[value] * N, dtype="float32", shape=[N])


def values_after_a_step(
    model: tinker.TrainingClient, data: Sequence[types.Datum], loss_fn: types.LossFnType
) -> list[list[float]]:
    """Logprobs of the data after one optimizer step on them."""
    model.forward_backward(list(data), loss_fn)
    model.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    return logprobs(model.forward(list(data), loss_fn).result())


@pytest.mark.parametrize(
    ("loss_fn", "config"),
    [
        ("importance_sampling", None),
        ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
        ("cispo", None),
        ("dro", {"beta": 0.05}),
        ("gspo", {"clip_low_threshold": 0.01, "clip_high_threshold": 100.0}),
    ],
)
def test_policy_losses_run(
    new_model: NewModel, loss_fn: types.LossFnType, config: dict[str, float] | None
) -> None:
    model = new_model()
    data = policy_datum(N)
    if loss_fn == "gspo":
        data = with_inputs(data, sequence_ratio_mask=[0.0] * 4 + [1.0] * (N - 4))
    future = model.forward_backward([data], loss_fn, config)
    step = model.optim_step(types.AdamParams(learning_rate=1e-3))

    assert len(logprobs(future.result())[0]) == N
    metrics = step.result().metrics
    assert metrics is not None
    assert metrics["grad_norm"] > 0


def test_thresholds_per_token_act_as_those_of_the_config_do(new_model: NewModel) -> None:
    given = policy_datum(N)
    own = with_inputs(given, clip_low_threshold=[0.5] * N, clip_high_threshold=floats(1.01))
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 1.01}

    model = new_model()
    totals = [
        model.forward([each], "ppo", each_config).result().metrics["loss:sum"]
        for each, each_config in ((own, None), (given, config), (given, None))
    ]

    assert totals[0] == pytest.approx(totals[1])
    assert totals[0] != pytest.approx(totals[2])


def top_k_datum(form: str) -> types.Datum:
    """Three targets at the last two positions, one of them weighed 0; no targets before."""
    targets = torch.zeros((N, 3), dtype=torch.int64)
    weights = torch.zeros((N, 3))
    targets[-2:] = torch.tensor([[20, 30, 40], [50, 60, 70]])
    weights[-2:] = torch.tensor([[0.5, 0.25, 0.25], [1.0, -0.5, 0.0]])
    inputs: dict[str, Any] = {
        "numpy": {"target_tokens": targets.numpy(), "weights": weights.numpy()},
        "lists": {"target_tokens": targets.tolist(), "weights": weights.tolist()},
        "torch": {"target_tokens": targets, "weights": weights},
    }[form]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens(N)),
        loss_fn_inputs=inputs,
    )


def test_top_k_targets_dense_and_sparse_give_logprobs_in_their_shape(new_model: NewModel) -> None:
    data = [top_k_datum("numpy"), top_k_datum("torch"), top_k_datum("lists"), datum(5)]
    assert data[0].loss_fn_inputs["target_tokens"].sparse_crow_indices is None
    assert data[1].loss_fn_inputs["target_tokens"].sparse_crow_indices is not None

    output = new_model().forward_backward(data, "cross_entropy").result()

    found = [np.asarray(row["logprobs"].to_numpy()) for row in output.loss_fn_outputs]
    assert [row.shape for row in found] == [(N, 3), (N, 3), (N, 3), (5,)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    weights = top_k_datum("numpy").loss_fn_inputs["weights"].to_numpy()
    expected = -3 * (weights * found[0]).sum() - found[3].sum()
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)


def test_one_target_as_a_column_trains_like_one_target(new_model: NewModel) -> None:
    flat = datum(N, seed=4)
    column = types.Datum(
        model_input=flat.model_input,
        loss_fn_inputs={
            key: value.to_numpy().reshape(N, 1) for key, value in flat.loss_fn_inputs.items()
        },
    )

    one, other = (
        values_after_a_step(new_model(seed=7), [each], "cross_entropy") for each in (flat, column)
    )

    assert one == other


def neg_ll(data: list[types.Datum], found: list[Any]) -> tuple[Any, dict[str, float]]:
    """Cross entropy as a user would write it."""
    terms = [
        -(each * given.loss_fn_inputs["weights"].to_torch().reshape(each.shape)).sum()
        for given, each in zip(data, found, strict=True)
    ]
    return torch.stack(terms).sum(), {"num_data": float(len(data))}


def test_a_custom_loss_of_the_client_trains_like_the_built_in_one(new_model: NewModel) -> None:
    data = [datum(N, seed=1), datum(5, seed=2, weights=[1.0, -0.5, 0.0, 2.0, 1.0])]
    built_in, custom = new_model(seed=9), new_model(seed=9)
    expected = values_after_a_step(built_in, data, "cross_entropy")

    output = custom.forward_backward_custom(data, neg_ll).result()
    custom.optim_step(types.AdamParams(learning_rate=1e-2)).result()

    assert logprobs(custom.forward(data, "cross_entropy").result()) == expected
    assert output.metrics["num_data"] == 2.0
    assert output.metrics["loss:sum"] > 0


def test_a_custom_loss_of_many_chunks_sees_all_data_at_once(new_model: NewModel) -> None:
    """The SDK sends 1024 data at most per request; steps behind it wait for all of them."""
    data = [datum(2, seed=i) for i in range(1100)]

    model = new_model()
    future = model.forward_backward_custom(data, neg_ll)
    step = model.optim_step(types.AdamParams(learning_rate=1e-3))
    after = model.forward(data, "cross_entropy")

    output = future.result()
    assert output.metrics["num_data"] == 1100.0
    total = -sum(sum(row) for row in logprobs(output))
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-4)
    assert len(output.loss_fn_outputs) == 1100
    metrics = step.result().metrics
    assert metrics is not None
    assert metrics["grad_norm"] > 0
    assert after.result().metrics["loss:sum"] < output.metrics["loss:sum"]


def test_a_custom_loss_of_the_client_may_have_several_targets_per_token(
    new_model: NewModel,
) -> None:
    model = new_model()
    totals: list[float] = []
    for _ in range(3):
        output = model.forward_backward_custom([top_k_datum("lists")], neg_ll).result()
        totals.append(output.metrics["loss:sum"])
        model.optim_step(types.AdamParams(learning_rate=1e-2)).result()

    assert totals[-1] < totals[0]


def test_a_custom_loss_of_the_client_may_read_inputs_that_are_never_sent(
    new_model: NewModel,
) -> None:
    """As for distillation: the SDK sends target_tokens alone, and weights it has made itself."""
    inputs: dict[str, Any] = {
        "target_tokens": [[20, 30]],
        "target_distribution": types.TensorData(data=[0.25, 0.75], dtype="float32", shape=[1, 2]),
    }
    chosen = types.Datum(model_input=types.ModelInput.from_ints(tokens(1)), loss_fn_inputs=inputs)

    def distance(data: list[types.Datum], found: list[Any]) -> tuple[Any, dict[str, float]]:
        wanted = data[0].loss_fn_inputs["target_distribution"].to_torch()
        return -(wanted * found[0]).sum(), {}

    model = new_model()
    totals: list[float] = []
    for _ in range(4):
        output = model.forward_backward_custom([chosen], distance).result()
        model.optim_step(types.AdamParams(learning_rate=1e-2))
        totals.append(output.metrics["loss:sum"])
        found = output.loss_fn_outputs[0]["logprobs"].to_numpy()
        assert totals[-1] == pytest.approx(-(found @ [0.25, 0.75]).item(), rel=1e-5)

    assert totals[-1] < totals[0] - 1


def test_data_with_provenance_train_like_data_without(new_model: NewModel) -> None:
    """Where tokens came from is for stable_reinforce alone; other losses have no use for it."""
    plain = policy_datum(N)
    spans = [
        types.PromptProvenanceSpan(sequence_id="s", length=4),
        types.SampledProvenanceSpan(sequence_id="s", length=N - 4),
    ]
    traced = plain.with_provenance(model_input=spans, loss_fn_inputs=spans)

    one, other = (values_after_a_step(new_model(seed=3), [each], "ppo") for each in (plain, traced))

    assert one == other
    with pytest.raises(tinker.RequestFailedError, match="use ppo or importance_sampling"):
        new_model().forward_backward([traced], "stable_reinforce", {"kl_coeff": 0.1}).result()


def test_samples_may_ask_for_stability_info(service: tinker.ServiceClient) -> None:
    client = service.create_sampling_client(
        base_model=BASE_MODEL, record_stability_info=True
    ).result()

    response = client.sample(
        types.ModelInput.from_ints(tokens(5)),
        num_samples=1,
        sampling_params=types.SamplingParams(max_tokens=3, seed=1),
    ).result()

    assert len(response.sequences[0].logprobs or []) == len(response.sequences[0].tokens)


def test_a_seed_gives_the_same_adapter_again_and_another_seed_another(new_model: NewModel) -> None:
    data = [datum(N, seed=1)]

    first, again, other = (
        values_after_a_step(new_model(seed=seed), data, "cross_entropy") for seed in (5, 5, 6)
    )

    assert first == again
    assert first != other


def test_without_a_seed_every_model_begins_differently(new_model: NewModel) -> None:
    data = [datum(N, seed=1)]

    first, other = (
        values_after_a_step(new_model(seed=None), data, "cross_entropy") for _ in range(2)
    )

    assert first != other


def test_the_gradient_norm_is_the_one_before_clipping(new_model: NewModel) -> None:
    norms: list[float] = []
    for clip in (0.0, 1e-3):
        model = new_model(seed=5)
        model.forward_backward([datum(N)], "cross_entropy")
        params = types.AdamParams(learning_rate=1e-3, grad_clip_norm=clip)
        metrics = model.optim_step(params).result().metrics
        assert metrics is not None
        norms.append(metrics["grad_norm"])

    assert norms[0] == norms[1] > 1e-3
