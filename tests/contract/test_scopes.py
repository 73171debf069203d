"""What keys with few scopes do with the official SDK: enough for what they are for, and no more."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker import types

from contract.builders import datum, tokens, train
from contract.conftest import BASE_MODEL, Running
from contract.test_cli import Cli
from cyclora_core.accounts import Scope

TENANT = "scoped"
PARAMS = types.SamplingParams(max_tokens=4)


def key(up: Running, *scopes: Scope) -> str:
    """A key of the tenant with these scopes only."""
    return keys(up, scopes)[0]


def keys(up: Running, scopes: Iterable[Scope]) -> tuple[str, str]:
    """The same, with its key_id."""
    up.api_key(TENANT)
    with up.admin() as admin:
        [tenant] = [each for each in admin.tenants.list() if each.name == TENANT]
        made = admin.keys.create(tenant.tenant_id, "scoped", scopes)
    return made.api_key, made.key_id


def service(up: Running, *scopes: Scope) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=up.base_url, api_key=key(up, *scopes))


def prompt() -> Any:
    return types.ModelInput.from_ints(tokens(5))


def test_a_sample_key_samples_and_does_not_train(up: Running) -> None:
    client = service(up, Scope.SAMPLE)
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result()

    result = sampler.sample(prompt(), 1, PARAMS).result()

    assert len(result.sequences[0].tokens) <= 4
    with pytest.raises(tinker.PermissionDeniedError, match="scope train"):
        client.create_lora_training_client(BASE_MODEL, rank=4).result()


def test_a_train_key_runs_a_loop_with_its_samplers_and_lists_nothing(up: Running) -> None:
    client = service(up, Scope.TRAIN)
    model = client.create_lora_training_client(BASE_MODEL, rank=4).result()
    train(model, [datum()], 1)

    sampler = model.save_weights_and_get_sampling_client().result()
    result = sampler.sample(prompt(), 1, PARAMS).result()
    state = model.save_state("state").result().path
    again = client.create_training_client_from_state_with_optimizer(state).result()

    assert len(result.sequences[0].tokens) <= 4
    assert again.get_info().model_data.model_name == BASE_MODEL
    rest = tinker.RestClient(base_url=up.base_url, api_key=key(up, Scope.TRAIN))
    with pytest.raises(tinker.PermissionDeniedError, match="scope read"):
        rest.list_training_runs().result()


def test_a_read_key_runs_the_lists_of_the_command_line_and_changes_nothing(
    up: Running, tmp_path: Path
) -> None:
    model = service(up, Scope.TRAIN).create_lora_training_client(BASE_MODEL, rank=4).result()
    path = model.save_state("kept").result().path
    cli = Cli(up, tmp_path, key(up, Scope.READ))

    assert path in cli("checkpoint", "list")
    assert path.split("/")[2] in cli("run", "list")
    assert path in cli("checkpoint", "info", path)

    refused = cli.run("checkpoint", "delete", path, "--yes")
    assert "scope train" in refused.stdout + refused.stderr
    assert path in cli("checkpoint", "list")


def test_an_admin_key_administers_and_does_not_train(up: Running) -> None:
    client = tinker.ServiceClient(base_url=up.base_url, api_key=up.ready["admin_key"])

    with pytest.raises(tinker.PermissionDeniedError, match="scope train"):
        client.create_lora_training_client(BASE_MODEL, rank=4).result()
    with up.admin() as admin:
        assert admin.tenants.list()


def test_a_leaked_key_revoked_in_mid_run_ends_its_polls_and_not_the_run(up: Running) -> None:
    """What it had sent runs once; another key of the tenant fills the gap and gets all results."""
    leaked, leaked_id = keys(up, [Scope.TRAIN])
    other = key(up, Scope.TRAIN)
    with httpx.Client(base_url=f"{up.base_url}/api/v1", timeout=60) as http:

        def post(route: str, secret: str, **body: Any) -> httpx.Response:
            return http.post(f"/{route}", json=body, headers={"X-API-Key": secret})

        def redeem(request_id: str) -> dict[str, Any]:
            while True:
                answer = post("retrieve_future", other, request_id=request_id)
                if answer.status_code != 408:
                    assert answer.status_code == 200, answer.text
                    return answer.json()

        session_id = post("create_session", leaked).json()["session_id"]
        new = {"session_id": session_id, "model_seq_id": 0, "base_model": BASE_MODEL}
        model_id = post("create_model", leaked, **new, lora_config={"rank": 4}).json()["model_id"]
        redeem(f"{model_id}:0")
        step = {"model_id": model_id, "adam_params": {"learning_rate": 1e-3}}
        waiting = post("optim_step", leaked, **step, seq_id=2).json()["request_id"]

        with ThreadPoolExecutor(1) as pool:
            poll = pool.submit(post, "retrieve_future", leaked, request_id=waiting)
            with up.admin() as admin:
                admin.keys.revoke(leaked_id)
            revoked_mono_s = time.monotonic()
            answer = poll.result(10)

        assert answer.status_code == 401
        assert time.monotonic() - revoked_mono_s < 1.0
        assert post("optim_step", leaked, **step, seq_id=1).status_code == 401

        first = post("optim_step", other, **step, seq_id=1).json()["request_id"]
        for request_id in (first, waiting):
            assert "error" not in redeem(request_id)
        again = post("optim_step", other, **step, seq_id=2).json()["request_id"]
        assert again == waiting
        assert post("get_info", other, model_id=model_id).status_code == 200
