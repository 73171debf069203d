"""What administrators see and do, against a running server with a real worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import tinker
from tinker import types

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running
from cyclora_core.usage import GroupBy

pytestmark = pytest.mark.contract

STEP = types.AdamParams(learning_rate=1e-2)
_DEADLINE_S = 60.0


def tenant_id(up: Running, name: str) -> str:
    up.api_key(name)
    with up.admin() as admin:
        return next(each.tenant_id for each in admin.tenants.list() if each.name == name)


def test_what_is_cancelled_fails_and_the_model_is_as_if_it_had_never_been_sent(
    up: Running, new_model: Callable[..., tinker.TrainingClient]
) -> None:
    model = new_model("cancelled")
    train(model, [datum(seed=1)], 1)
    futures: list[tuple[int, Any]] = []
    for step in range(30):
        data = [datum(200, seed=step + i) for i in range(8)]
        futures.append((step, model.forward_backward(data, "cross_entropy")))
        futures.append((-1, model.optim_step(STEP)))
    futures[0][1].result(timeout=_DEADLINE_S)
    with up.admin() as admin:
        num_cancelled = admin.queue.cancel(model_id=model.model_id)

    applied: list[int] = []
    errors: list[str] = []
    for step, future in futures:
        try:
            future.result(timeout=_DEADLINE_S)
            applied.append(step)
        except tinker.RequestFailedError as error:
            errors.append(str(error))
    after = logprobs(model.forward([datum(seed=9)], "cross_entropy").result(timeout=_DEADLINE_S))

    assert len(errors) == num_cancelled > 0
    assert all("cancelled by an administrator" in error for error in errors)
    same = new_model("cancelled")
    train(same, [datum(seed=1)], 1)
    for step in applied:
        if step < 0:
            same.optim_step(STEP).result(timeout=_DEADLINE_S)
        else:
            data = [datum(200, seed=step + i) for i in range(8)]
            same.forward_backward(data, "cross_entropy").result(timeout=_DEADLINE_S)
    expected = same.forward([datum(seed=9)], "cross_entropy").result(timeout=_DEADLINE_S)
    assert after == logprobs(expected)


def test_cycles_usage_runs_and_settings_are_told(
    up: Running, new_model: Callable[..., tinker.TrainingClient]
) -> None:
    owner = tenant_id(up, "told")
    model = new_model("told")
    train(model, [datum(12, seed=1)], 2)
    path = model.save_state("kept").result().path

    with up.admin() as admin:
        cycles = [each for each in admin.cycles.list() if owner in each.tenants]
        by_run = admin.usage.sums([GroupBy.RUN, GroupBy.KEY], tenants=[owner])
        [key] = admin.keys.list(owner)
        [run] = admin.runs.find(model_id=model.model_id)
        found = admin.checkpoints.find(tenant_id=owner)
        settings = admin.settings.get()
        garbage = admin.garbage.collect(grace_s=600)

    assert sum(each.num_tokens or 0 for each in cycles) == 24
    assert all(each.ended_at and each.ended_at >= each.dispatched_at for each in cycles)
    [row] = [each for each in by_run if each.group[GroupBy.KEY]]
    assert row.group == {GroupBy.RUN: model.model_id, GroupBy.KEY: key.key_id}
    assert (row.amounts["trained_tokens"], row.amounts["num_checkpoints"]) == (24, 1)
    assert (run.tenant_id, run.base_model, run.num_checkpoints) == (owner, BASE_MODEL, 1)
    assert [each.path for each in found.checkpoints] == [path]
    assert {each.kind for each in settings.processes} == {"scheduler", "worker"}
    assert "poll_hold_s" in settings.server
    assert garbage.is_dry_run
    assert path not in {each.name for each in garbage.garbage}


def test_a_run_that_is_deleted_ends(
    up: Running, new_model: Callable[..., tinker.TrainingClient]
) -> None:
    model = new_model("deleted")
    train(model, [datum(12, seed=1)], 1)
    model.save_state("gone").result()

    with up.admin() as admin:
        deleted = admin.runs.delete(model.model_id)
        deadline_s = time.monotonic() + _DEADLINE_S
        while not admin.runs.find(model_id=model.model_id)[0].is_ended:
            assert time.monotonic() < deadline_s
        [run] = admin.runs.find(model_id=model.model_id)

    assert deleted.num_checkpoints == 1
    assert (run.num_checkpoints, run.num_waiting) == (0, 0)
