"""Quotas as the official SDK meets them: it waits, and nothing that was accepted fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import tinker
from tinker import types
from tinker.lib.api_future_impl import QueueState
from tinker.lib.queue_state_logger import QueueStateLogger

from contract.builders import datum, tokens, train
from contract.conftest import BASE_MODEL, Running, run_up

pytestmark = pytest.mark.contract

NewClient = Callable[..., tinker.TrainingClient]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A deployment of its own whose polls are answered soon, so that pauses are seen."""
    folder = tmp_path_factory.mktemp("limited") / "data"
    with run_up(folder, variables={"CYCLORA_POLL_HOLD_S": "0.5"}) as running:
        yield running


def set_quotas(running: Running, tenant: str, **quotas: int | None) -> None:
    running.api_key(tenant)
    with running.admin() as admin:
        [found] = [each for each in admin.tenants.list() if each.name == tenant]
        admin.quotas.set(found.tenant_id, **quotas)


def in_use(running: Running, tenant: str) -> dict[str, int]:
    headers = {"X-API-Key": running.api_key(tenant)}
    answer = httpx.get(f"{running.base_url}/api/v1/quotas", headers=headers)
    return answer.raise_for_status().json()["use"]


def new_model(running: Running, tenant: str, rank: int = 8) -> tinker.TrainingClient:
    service = running.service(tenant)
    return service.create_lora_training_client(BASE_MODEL, rank=rank, seed=0).result()


def sampled(running: Running, tenant: str, count: int) -> list[types.SampleResponse]:
    client = running.service(tenant).create_sampling_client(base_model=BASE_MODEL).result()
    prompt = types.ModelInput.from_ints(tokens(8))
    params = types.SamplingParams(max_tokens=8, stop=[], seed=1)
    futures = [client.sample(prompt, 1, params) for _ in range(count)]
    return [future.result() for future in futures]


def pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What polls of the SDK's training clients are told, from now on."""
    told: list[tuple[str, str | None]] = []
    observe = QueueStateLogger.on_queue_state_change

    def note(self: QueueStateLogger, state: QueueState, reason: str | None = None) -> None:
        told.append((state.value, reason))
        observe(self, state, reason)

    monkeypatch.setattr(QueueStateLogger, "on_queue_state_change", note)
    return told


def test_training_over_a_rate_goes_on_slower_and_says_why(
    limited: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_quotas(limited, "slow", tokens_per_minute=6000)
    told = pauses(monkeypatch)
    data = [datum(100, seed) for seed in range(5)]
    model = new_model(limited, "slow")

    began_s = time.monotonic()
    losses = train(model, data, 14)

    # The first 6,000 tokens start at once; the 13th step owes 500, which last five seconds.
    assert len(losses) == 14
    assert time.monotonic() - began_s > 3
    reasons = [reason for state, reason in told if "rate_limit" in state.lower()]
    assert reasons
    assert all(reason and "6000 tokens per minute" in reason for reason in reasons)


def test_samples_beyond_the_concurrency_quota_all_finish(limited: Running) -> None:
    set_quotas(limited, "parallel", max_concurrent_samples=2)

    found = sampled(limited, "parallel", 8)

    assert all(len(each.sequences[0].tokens) == 8 for each in found)
    use = in_use(limited, "parallel")
    assert (use["operations"], use["samples"], use["tokens"]) == (0, 0, 0)


def test_a_used_up_budget_pauses_until_the_administrator_raises_it(limited: Running) -> None:
    set_quotas(limited, "budget", tokens_per_day=300)
    model = new_model(limited, "budget")
    model.forward_backward([datum(250)], "cross_entropy").result()
    outcome: list[object] = []

    def go_on() -> None:
        outcome.append(model.forward_backward([datum(100)], "cross_entropy").result())

    paused = threading.Thread(target=go_on)
    paused.start()
    # What costs no tokens goes on: work can be saved.
    assert new_model(limited, "budget").save_state("kept").result().path.endswith("/kept")
    assert paused.is_alive()
    assert in_use(limited, "budget")["tokens_today"] == 250
    set_quotas(limited, "budget", tokens_per_day=None)
    paused.join(30.0)

    assert outcome
    assert in_use(limited, "budget")["tokens_today"] == 350


def test_a_model_beyond_the_quota_is_refused_with_what_is_allowed(limited: Running) -> None:
    set_quotas(limited, "small", max_rank=8, max_adapters=1)
    with pytest.raises(tinker.APIStatusError, match="at most 8"):
        new_model(limited, "small", rank=16)
    new_model(limited, "small")

    with pytest.raises(tinker.APIStatusError, match="max_adapters"):
        new_model(limited, "small")


def test_a_save_beyond_the_stored_bytes_loses_nothing(limited: Running) -> None:
    set_quotas(limited, "full", max_stored_bytes=10)
    model = new_model(limited, "full")
    train(model, [datum(8)], 1)

    with pytest.raises(tinker.RequestFailedError, match="max_stored_bytes"):
        model.save_state("first").result()
    set_quotas(limited, "full", max_stored_bytes=None)

    assert model.save_state("first").result().path.endswith("/first")
    assert in_use(limited, "full")["stored_bytes"] > 10
