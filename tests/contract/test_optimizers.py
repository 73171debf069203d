"""Optimizers through the official SDK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tinker
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase, OptimParamsBase

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]
DIMUON = types.DimuonOptimizerConfig()
STEP = types.DimuonParams(learning_rate=0.02, beta1=0.8)
DATA = [datum(seed=i) for i in range(3)]


def steps(
    model: tinker.TrainingClient, num_steps: int, data: Sequence[Any] = DATA
) -> list[list[float]]:
    """Logprobs of the data after pipelined steps of Dimuon."""
    for _ in range(num_steps):
        model.forward_backward(list(data), "cross_entropy")
        model.optim_step(STEP)
    return logprobs(model.forward(list(data), "cross_entropy").result())


def test_dimuon_trains_and_tells_the_norm_before_clipping(new_model: NewModel) -> None:
    losses: list[float] = []
    norms: list[float] = []
    for clip in (0.0, 1e-3):
        model = new_model(optimizer=DIMUON)
        for _ in range(8):
            passed = model.forward_backward(DATA, "cross_entropy")
            stepped = model.optim_step(STEP.model_copy(update={"grad_clip_norm": clip}))
            losses.append(passed.result().metrics["loss:sum"])
            metrics = stepped.result().metrics
            assert metrics is not None
            norms.append(metrics["grad_norm"])

    assert losses[7] < losses[0] / 2
    assert losses[15] < losses[8] / 2
    assert norms[0] == norms[8] > 1e-3


def test_the_optimizer_of_a_model_is_told(up: Running, new_model: NewModel) -> None:
    rest = up.rest()
    for optimizer in (types.AdamOptimizerConfig(), DIMUON):
        model = new_model(optimizer=optimizer)
        path = model.save_state("told").result().path

        info = rest.get_weights_info_by_tinker_path(path).result()

        found = [model.get_info().optimizer_config, info.optimizer_config]
        assert [each.model_dump() for each in found] == [optimizer.model_dump()] * 2


def test_a_step_of_the_other_optimizer_is_refused_and_names_the_right_one(
    new_model: NewModel,
) -> None:
    dimuon, adamw = new_model(optimizer=DIMUON), new_model()

    with pytest.raises(tinker.RequestFailedError, match=r"created with dimuon.*DimuonParams"):
        dimuon.optim_step(types.AdamParams()).result()
    with pytest.raises(tinker.RequestFailedError, match=r"created with adamw.*AdamParams"):
        adamw.optim_step(STEP).result()

    assert steps(dimuon, 1)
    assert train(adamw, DATA, 1)[0] > 0


def test_what_only_newer_sdks_send_is_refused_by_name(new_model: NewModel) -> None:
    class NewerParams(OptimParamsBase, frozen=True):
        type: str = "dimuon"
        learning_rate: float = 0.1
        damping: float = 0.01

    with pytest.raises(tinker.RequestFailedError, match="'damping', which dimuon does not take"):
        new_model(optimizer=DIMUON).optim_step(NewerParams()).result()


def test_an_unknown_optimizer_is_refused_at_once(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    for config, complaint in (
        (
            OptimizerConfigBase(type="sgd"),
            r"'sgd' is not supported; expected adamw or dimuon",
        ),
        (OptimizerConfigBase(type="dimuon", version=2), "version of optimizer_config is 2"),  # type: ignore[call-arg]
    ):
        with pytest.raises(tinker.BadRequestError, match=complaint):
            service.create_lora_training_client(BASE_MODEL, rank=4, optimizer=config).result()


def test_going_on_from_state_with_the_optimizer_is_never_having_stopped(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model(optimizer=DIMUON)
    steps(model, 2)
    path = model.save_state("two").result().path
    expected = steps(model, 2)

    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    same = new_model(optimizer=DIMUON)
    with pytest.warns(FutureWarning):
        same.load_state_with_optimizer(path).result()  # pyright: ignore[reportDeprecated]

    assert resumed.get_info().optimizer_config.type == "dimuon"
    assert steps(resumed, 2) == expected
    assert steps(same, 2) == expected


def test_weights_alone_start_any_optimizer_anew(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model(optimizer=DIMUON)
    steps(model, 2)
    path = model.save_state("weights").result().path
    saved = steps(model, 0)

    fresh = service.create_training_client_from_state(path).result()
    again = service.create_training_client_from_state(path, optimizer=DIMUON).result()

    assert [steps(fresh, 0), steps(again, 0)] == [saved] * 2
    assert train(fresh, DATA, 2)[1] < -sum(map(sum, saved))
    assert steps(again, 1) != steps(model, 1)  # its momentum remembers the steps before


def test_the_state_of_another_optimizer_is_not_loaded(new_model: NewModel) -> None:
    path = new_model(optimizer=DIMUON).save_state("other").result().path
    adamw = new_model()

    with (
        pytest.warns(FutureWarning),
        pytest.raises(tinker.RequestFailedError, match="is of dimuon; the model has adamw"),
    ):
        adamw.load_state_with_optimizer(path).result()  # pyright: ignore[reportDeprecated]
    with pytest.warns(FutureWarning):
        adamw.load_state(path).result()  # pyright: ignore[reportDeprecated]

    assert train(adamw, DATA, 1)[0] > 0
