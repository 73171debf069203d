"""Losses of the user's own, uploaded by the official SDK and run by the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from contract.builders import datum, logprobs, policy_datum, tokens
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

Rank = Literal[0, 1, 2]
N = 12
STEP = types.AdamParams(learning_rate=1e-2)


def floats(values: Any, shape: Sequence[int] | None = None) -> types.TensorData:
    flat = np.asarray(values, np.float32)
    return types.TensorData(
        data=flat.reshape(-1).tolist(),
        dtype="float32",
        shape=list(flat.shape if shape is None else shape),
    )


def rl_datum(num_tokens: int, seed: int) -> types.Datum:
    """A datum for the built-in policy losses, and under other names for one's own."""
    base = policy_datum(num_tokens, seed)
    rng = np.random.default_rng(seed)
    inputs = base.loss_fn_inputs
    return types.Datum(
        model_input=base.model_input,
        loss_fn_inputs={
            **inputs,
            "old": inputs["logprobs"],
            "mask": floats((np.arange(num_tokens) % 3 > 0).astype(float)),
            "scale": floats([rng.uniform(0.5, 1.5)], []),
        },
    )


def ppo(logprobs: Any, old: Any, advantages: Any) -> Any:
    ratio = torch.exp(logprobs - old)
    surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, 0.8, 1.2) * advantages)
    clipped = (ratio < 0.8) | (ratio > 1.2)
    return -surrogate.sum(), {
        "custom/clipped:mean": clipped.float().mean(),
        "custom/num_tokens:sum": torch.ones_like(ratio).sum(),
    }


def kl_regularised(logprobs: Any, old: Any, advantages: Any, mask: Any, scale: Any) -> Any:
    difference = (old - logprobs) * mask
    kl = torch.exp(difference) - 1.0 - difference
    policy = -(torch.exp(logprobs - old) * advantages * mask).sum()
    return policy + scale * kl.sum(), {"custom/kl:mean": kl.sum() / mask.sum().clamp(min=1.0)}


def masked_mean(logprobs: Any, mask: Any) -> Any:
    loss = -(logprobs * mask).sum() / mask.sum().clamp(min=1.0)
    return loss, {"custom/perplexity:mean": loss.detach().exp()}


def length_normalised_gspo(logprobs: Any, old: Any, advantages: Any, mask: Any) -> Any:
    log_ratio = ((logprobs - old) * mask).sum() / mask.sum()
    ratio = torch.exp(log_ratio - log_ratio.detach() + (logprobs - logprobs.detach()))
    return -(ratio * advantages * mask).mean(), {}


def dpo(logprobs: Any, reference: Any, mask: Any, beta: Any) -> Any:
    """Chosen and rejected answers end to end in one datum, padded to one length."""
    ratio = ((logprobs - reference) * mask).view(2, -1).sum(dim=1)
    margin = beta * (ratio[0] - ratio[1])
    return -torch.nn.functional.logsigmoid(margin), {
        "custom/accuracy:mean": (margin > 0).float(),
        "custom/margin:sum": margin,
    }


def distillation(logprobs: Any, teacher: Any) -> Any:
    """Forward KL over the teacher's top targets."""
    p = torch.softmax(teacher, dim=-1)
    return (p * (torch.log_softmax(teacher, dim=-1) - logprobs)).sum(), {}


def dpo_datum(seed: int) -> types.Datum:
    rng = np.random.default_rng(seed)
    base = datum(N, seed)
    mask = np.ones(N)
    mask[[4, 5, 11]] = 0
    return types.Datum(
        model_input=base.model_input,
        loss_fn_inputs={
            "target_tokens": base.loss_fn_inputs["target_tokens"],
            "reference": floats(rng.normal(-6, 0.5, N)),
            "mask": floats(mask),
            "beta": floats([0.1], []),
        },
    )


def top_k_datum(seed: int) -> types.Datum:
    rng = np.random.default_rng(seed)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens(N, seed)),
        loss_fn_inputs={
            "target_tokens": types.TensorData(
                data=rng.integers(10, 500, N * 3).tolist(), dtype="int64", shape=[N, 3]
            ),
            "teacher": floats(rng.normal(0, 1, (N, 3))),
        },
    )


RL_DATA = [rl_datum(N, 1), rl_datum(5, 2), rl_datum(30, 3)]
POLICY: dict[str, Rank] = {"logprobs": 1, "old": 1, "advantages": 1}
MASKED: dict[str, Rank] = {**POLICY, "mask": 1}
CASES: dict[str, tuple[Any, Mapping[str, Rank], list[types.Datum]]] = {
    "ppo": (ppo, POLICY, RL_DATA),
    "kl": (kl_regularised, {**MASKED, "scale": 0}, RL_DATA),
    "masked mean": (masked_mean, {"logprobs": 1, "mask": 1}, RL_DATA),
    "gspo": (length_normalised_gspo, MASKED, RL_DATA),
    "dpo": (
        dpo,
        {"logprobs": 1, "reference": 1, "mask": 1, "beta": 0},
        [dpo_datum(1), dpo_datum(2)],
    ),
    "distillation": (distillation, {"logprobs": 2, "teacher": 2}, [top_k_datum(1), top_k_datum(2)]),
}


def on_the_client(handle: tinker.LossHandle) -> tinker.LossHandle:
    """The same traced loss, which the SDK then computes itself."""
    return dataclasses.replace(handle, loss_id=None)


def _shape(each: types.Datum) -> tuple[int, ...]:
    return each.loss_fn_inputs["target_tokens"].to_numpy().shape


def new_training(service: tinker.ServiceClient, seed: int = 7) -> tinker.TrainingClient:
    return service.create_lora_training_client(BASE_MODEL, rank=8, seed=seed).result()


def after_a_step(model: tinker.TrainingClient, data: list[types.Datum]) -> list[list[float]]:
    """Logprobs of the data after an optimizer step: equal ones need equal weights."""
    model.optim_step(STEP)
    plain = [
        types.Datum(
            model_input=each.model_input,
            loss_fn_inputs={
                "target_tokens": each.loss_fn_inputs["target_tokens"],
                "weights": floats(np.zeros(_shape(each))),
            },
        )
        for each in data
    ]
    return logprobs(model.forward(plain, "cross_entropy").result())


def close(ours: list[list[float]], theirs: list[list[float]]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_uploaded_loss_trains_like_the_same_loss_on_the_client(up: Running, name: str) -> None:
    """In loss, metrics, logprobs and the weights after a step."""
    function, ranks, data = CASES[name]
    service = up.service()
    uploaded, local = new_training(service), new_training(service)
    handle = service.create_custom_loss(function, ranks).result()
    assert handle.loss_id is not None

    ours = uploaded.forward_backward_custom(data, handle).result()
    theirs = local.forward_backward_custom(data, on_the_client(handle)).result()

    assert ours.metrics["loss:sum"] == pytest.approx(theirs.metrics["loss:sum"], rel=1e-5)
    custom = {key for key in theirs.metrics if key.startswith("custom/")}
    assert custom == {key for key in ours.metrics if key.startswith("custom/")}
    for key in custom:
        assert ours.metrics[key] == pytest.approx(theirs.metrics[key], rel=1e-5, abs=1e-5)
    close(logprobs(ours), logprobs(theirs))
    close(after_a_step(uploaded, data), after_a_step(local, data))


def test_ppo_written_by_hand_trains_like_the_built_in_one(up: Running) -> None:
    service = up.service()
    own, built_in = new_training(service), new_training(service)
    handle = service.create_custom_loss(ppo, POLICY).result()
    plain = [
        types.Datum(
            model_input=each.model_input,
            loss_fn_inputs={
                key: each.loss_fn_inputs[key] for key in ("target_tokens", "logprobs", "advantages")
            },
        )
        for each in RL_DATA
    ]

    ours = own.forward_backward_custom(RL_DATA, handle).result()
    theirs = built_in.forward_backward(plain, "ppo").result()

    assert ours.metrics["loss:sum"] == pytest.approx(theirs.metrics["loss:sum"], rel=1e-5)
    assert ours.metrics["custom/num_tokens:sum"] == N + 5 + 30
    close(after_a_step(own, RL_DATA), after_a_step(built_in, RL_DATA))


def test_a_loss_may_be_asked_for_without_a_gradient(up: Running) -> None:
    service = up.service()
    model = new_training(service)
    handle = service.create_custom_loss(ppo, POLICY).result()
    assert handle.loss_id is not None
    before = model.forward(RL_DATA, "custom", {"loss_id": handle.loss_id}).result()

    trained = model.forward_backward_custom(RL_DATA, handle).result()

    keys = ("loss:sum", "custom/clipped:mean", "custom/num_tokens:sum")
    assert [before.metrics[k] for k in keys] == [trained.metrics[k] for k in keys]
    metrics = model.optim_step(STEP).result().metrics
    assert metrics is not None
    assert metrics["grad_norm"] > 0


def test_metrics_of_many_chunks_are_combined_by_their_suffix(up: Running) -> None:
    """The SDK sends 1024 data at most per request."""
    data = [rl_datum(2, seed) for seed in range(1100)]
    service = up.service()
    handle = service.create_custom_loss(masked_mean, {"logprobs": 1, "mask": 1}).result()

    output = new_training(service).forward_backward_custom(data, handle).result()

    found = logprobs(output)
    masks = [each.loss_fn_inputs["mask"].data for each in data]
    losses = [-np.dot(lp, m) / max(sum(m), 1) for lp, m in zip(found, masks, strict=True)]
    assert output.metrics["loss:sum"] == pytest.approx(sum(losses), rel=1e-5)
    perplexity = np.mean(np.exp(losses))
    assert output.metrics["custom/perplexity:mean"] == pytest.approx(perplexity, rel=1e-5)


def test_a_loss_with_an_operation_that_is_not_allowed_is_refused_by_its_node(up: Running) -> None:
    def noisy(logprobs: Any) -> Any:
        return (logprobs + torch.randn_like(logprobs)).sum(), {}

    with pytest.raises(tinker.BadRequestError, match=r"node 'randn_like'.*custom-losses\.md"):
        up.service().create_custom_loss(noisy, {"logprobs": 1}).result()


def test_a_loss_that_is_not_finite_fails_its_operation_and_the_client_goes_on(up: Running) -> None:
    def fragile(logprobs: Any, advantages: Any) -> Any:
        return torch.log(advantages.sum()) * logprobs.sum(), {}

    service = up.service()
    model, twin = new_training(service), new_training(service)
    bad = service.create_custom_loss(fragile, {"logprobs": 1, "advantages": 1}).result()
    good = service.create_custom_loss(ppo, POLICY).result()
    poor = rl_datum(4, 9)
    poor.loss_fn_inputs["advantages"] = floats([-1.0] * 4)

    failed = model.forward_backward_custom([*RL_DATA, poor], bad)
    model.forward_backward_custom(RL_DATA, good).result()

    with pytest.raises(tinker.RequestFailedError, match=r"custom loss 'fragile'.*loss is nan"):
        failed.result()
    twin.forward_backward_custom(RL_DATA, good).result()
    assert after_a_step(model, RL_DATA) == after_a_step(twin, RL_DATA)


def test_a_loss_of_another_session_or_tenant_does_not_exist(up: Running) -> None:
    handle = up.service().create_custom_loss(ppo, POLICY).result()
    assert handle.loss_id is not None

    for tenant in ("tenant", "stranger"):
        model = new_training(up.service(tenant))
        future = model.forward_backward(RL_DATA, "custom", {"loss_id": handle.loss_id})
        with pytest.raises(tinker.RequestFailedError, match="does not exist in this session"):
            future.result()


def test_a_tenant_gets_the_same_bits_beside_another_ones_custom_losses(
    up: Running, new_model: Callable[..., tinker.TrainingClient]
) -> None:
    service, other = up.service(), up.service("other")
    handle = service.create_custom_loss(ppo, POLICY).result()
    alone = new_training(service)
    alone.forward_backward_custom(RL_DATA, handle).result()
    expected = after_a_step(alone, RL_DATA)

    neighbour = new_training(other)
    theirs = other.create_custom_loss(masked_mean, {"logprobs": 1, "mask": 1}).result()
    beside = new_training(service)
    futures = [
        each
        for _ in range(4)
        for each in (neighbour.forward_backward_custom(RL_DATA, theirs), neighbour.optim_step(STEP))
    ]
    beside.forward_backward_custom(RL_DATA, handle)
    found = after_a_step(beside, RL_DATA)

    assert found == expected
    for each in futures:
        each.result()
