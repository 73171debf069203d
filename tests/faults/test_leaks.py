"""Nothing that a tenant sends is found in logs, metrics and error answers; probes, of processes.

A whole deployment trains and samples with data that can be recognised, and is sent everything wrong
that can be sent with them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.conftest import BASE_MODEL
from faults import http_requests
from faults.deployment import PLAIN_WORKER, Deployment, Shape, deployed
from faults.http_client import HttpClient, Outcome
from faults.http_requests import Request
from faults.processes import Processes

pytestmark = [pytest.mark.contract, pytest.mark.slow]

TOKENS = [431, 257, 389, 463, 311, 277]
TEXT = "Quixotic zebras vex my jumbo flock"
FOREIGN_KEY = "tml-Zm9yZWlnbi1rZXktb2Ytc29tZWJvZHktZWxzZQ"
PROCESSES = ("server", "scheduler", "worker")


@dataclass(slots=True)
class Seen:
    """What others could read of what was sent."""

    deployment: Deployment
    api_key: str
    tenant_id: str
    model_id: str = ""
    metrics: dict[str, str] = field(default_factory=dict[str, str])
    error_answers: list[str] = field(default_factory=list[str])
    """Bodies of answers with an error, and messages of failed futures."""

    def logs(self) -> dict[str, str]:
        return {name: self.deployment.log(name) for name in PROCESSES}


def chunks(tokens: list[int]) -> dict[str, Any]:
    return {"chunks": [{"type": "encoded_text", "tokens": tokens}]}


def datum(tokens: list[int], num_weights: int | None = None) -> dict[str, Any]:
    size = len(tokens)
    weights = [1.0] * (size if num_weights is None else num_weights)
    return {
        "model_input": chunks(tokens),
        "loss_fn_inputs": {
            "target_tokens": {"data": tokens, "dtype": "int64", "shape": [size]},
            "weights": {"data": weights, "dtype": "float32", "shape": [len(weights)]},
        },
    }


def sample(sampler_id: str, seq_id: int, tokens: list[int], **params: Any) -> Request:
    body = {
        "sampling_session_id": sampler_id,
        "seq_id": seq_id,
        "num_samples": 2,
        "prompt": chunks(tokens),
        "sampling_params": {"max_tokens": 4, "seed": 1, "stop": [], **params},
    }
    return Request("asample", body)


async def use(seen: Seen) -> None:
    """Train and sample, rightly and wrongly."""
    async with HttpClient(seen.deployment.base_url, seen.api_key) as client:
        session_id = (await client.post(http_requests.create_session("s")))["session_id"]
        promise = await client.post(http_requests.create_model(session_id))
        model_id = seen.model_id = promise["model_id"]
        (await client.outcome(promise["request_id"])).value()
        good = [datum(TOKENS), datum(TOKENS[::-1])]
        bad = [
            datum([*TOKENS, 10**6]),
            datum(TOKENS, num_weights=2),
            {**datum(TOKENS), "loss_fn_inputs": {TEXT: datum(TOKENS)["loss_fn_inputs"]["weights"]}},
        ]
        requests = [http_requests.forward_backward(model_id, 1, good)]
        requests += [
            http_requests.forward_backward(model_id, 2 + i, [each]) for i, each in enumerate(bad)
        ]
        requests.append(http_requests.optim_step(model_id, 2 + len(bad), 1e-3))
        sampling = http_requests.create_sampling_session(session_id, 0)
        sampler_id = (await client.post(sampling))["sampling_session_id"]
        requests += [
            sample(sampler_id, 0, TOKENS),
            sample(sampler_id, 1, [*TOKENS, 10**6]),
            sample(sampler_id, 2, TOKENS, stop=[TEXT]),
        ]
        outcomes: list[Outcome] = []
        for request in requests:
            promised = await client.post(request)
            outcomes.append(await client.outcome(promised["request_id"]))
    assert [each.is_done for each in outcomes].count(True) == 4
    seen.error_answers += [each.error for each in outcomes if not each.is_done]


def abuse(seen: Seen) -> None:
    """Send what is wrong in every way, tokens, texts and keys in every place."""
    key, path = seen.api_key, "/api/v1"
    own = {"X-API-Key": key}
    tokens = json.dumps(TOKENS)
    chat = {"model": BASE_MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
    with httpx.Client(base_url=seen.deployment.base_url, timeout=60) as http:

        def send(method: str, url: str, headers: dict[str, str], **rest: Any) -> httpx.Response:
            answer = http.request(method, url, headers=headers, **rest)
            if answer.status_code >= 400:
                seen.error_answers.append(f"{answer.text} {dict(answer.headers)}")
            return answer

        assert send("POST", "/v1/chat/completions", own, json=chat).status_code == 200
        for headers in (
            {"X-API-Key": FOREIGN_KEY},
            {"Authorization": f"Bearer {FOREIGN_KEY}"},
            {"Authorization": f"Basic {FOREIGN_KEY}"},
            {"X-Other": FOREIGN_KEY},
        ):
            send("GET", f"{path}/sessions", headers)
        for secret in (key, FOREIGN_KEY):
            send("GET", f"{path}/training_runs/{secret}", own)
            send("GET", f"{path}/sessions?limit={secret}&api_key={secret}", own)
            send("GET", f"/{secret}", own)
            send("GET", f"/v1/models/{secret}", own)
            send("POST", f"{path}/retrieve_future", own, json={"request_id": secret})
            send("POST", f"{path}/get_info", own, json={"model_id": secret})
            send("POST", f"{path}/create_session", own, json={"tags": secret})
            send("POST", f"{path}/create_session", own, json={secret: secret, "tags": [1]})
            send("POST", f"{path}/load_weights", own, json={
                "model_id": seen.model_id, "seq_id": 90, "path": secret, "optimizer": False,
            })  # fmt: skip
            send("POST", f"{path}/telemetry", own, json={"events": [{"headers": secret}]})
        for content in (
            b'{"messages": "' + TEXT.encode(),
            tokens.encode(),
            json.dumps({"messages": TEXT, "prompt": TOKENS, "model": BASE_MODEL}).encode(),
            json.dumps({"messages": [{"role": TEXT, "content": TEXT}], "model": 1}).encode(),
            json.dumps({"model_id": TEXT, "seq_id": tokens, "forward_input": TEXT}).encode(),
            json.dumps({"sampling_session_id": 1, "prompt": {"chunks": TEXT}}).encode(),
            json.dumps(
                {"prompt": {"chunks": [{"type": "encoded_text", "tokens": [TEXT, tokens]}]}}
            ).encode(),
        ):
            for route in (
                f"{path}/forward_backward",
                f"{path}/asample",
                f"{path}/optim_step",
                "/v1/chat/completions",
                "/v1/completions",
            ):
                send("POST", route, {**own, "Content-Type": "application/json"}, content=content)
                send(
                    "POST",
                    route,
                    {**own, "Content-Type": "application/x-protobuf"},
                    content=content,
                )
                send("POST", route, {**own, "Content-Encoding": "gzip"}, content=content)


@pytest.fixture(scope="module")
def seen(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A deployment that has been used and abused."""
    folder: Path = tmp_path_factory.mktemp("leaks")
    with deployed(processes, folder, Shape(worker_command=PLAIN_WORKER, has_metrics=True)) as run:
        tenant_id, api_key = run.new_tenant("lab")
        seen = Seen(run, api_key, tenant_id)
        asyncio.run(use(seen))
        abuse(seen)
        for name, port in run.metrics_ports.items():
            seen.metrics[name] = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        yield seen


def has_tokens(text: str) -> bool:
    """Whether three of the tokens stand there one after another, however they are set apart."""
    return any(
        re.search(r"\b" + r"\D{1,4}".join(map(str, tokens[i : i + 3])) + r"\b", text)
        for tokens in (TOKENS, TOKENS[::-1])
        for i in range(len(tokens) - 2)
    )


def leaks(seen: Seen, texts: dict[str, str]) -> list[str]:
    """Where something of what was sent is found."""
    secrets = {"key": seen.api_key[4:], "other key": FOREIGN_KEY[4:], "text": TEXT[:20]}
    found = [
        f"{what} in {n}" for n, text in texts.items() for what, s in secrets.items() if s in text
    ]
    return found + [f"tokens in {name}" for name, text in texts.items() if has_tokens(text)]


def test_what_is_looked_for_would_be_found(seen: Seen) -> None:
    texts = {"a": f"at {TOKENS}", "b": "tokens 431 257 389", "c": f"<{seen.api_key}>", "d": TEXT}

    assert sorted(leaks(seen, texts)) == ["key in c", "text in d", "tokens in a", "tokens in b"]


def test_logs_hold_nothing_that_was_sent(seen: Seen) -> None:
    assert leaks(seen, seen.logs()) == []


def test_metrics_hold_nothing_that_was_sent(seen: Seen) -> None:
    assert set(seen.metrics) == set(PROCESSES)
    assert leaks(seen, seen.metrics) == []


def test_error_answers_hold_nothing_that_was_sent(seen: Seen) -> None:
    assert len(seen.error_answers) > 100
    texts = {text[:300]: text for text in seen.error_answers}
    assert leaks(seen, texts) == []


def test_every_line_is_json_and_names_its_process(seen: Seen) -> None:
    for name, log in seen.logs().items():
        rows = [json.loads(line) for line in log.splitlines()]
        assert {row["process"] for row in rows} == {name}


def test_requests_and_cycles_have_lines_that_say_whom_they_are_about(seen: Seen) -> None:
    requests = seen.deployment.events("server", "request finished")
    submitted = [row for row in requests if row["route"] == "/api/v1/forward_backward"]
    assert {row["tenant_id"] for row in submitted if row["status"] == 200} == {seen.tenant_id}
    assert {row["model_id"] for row in submitted if row["status"] == 200} == {seen.model_id}
    assert all(row["request_id"] for row in submitted if row["status"] == 200)

    planned = {row["cycle_id"] for row in seen.deployment.events("scheduler", "cycle planned")}
    finished = seen.deployment.events("worker", "cycle finished")
    assert {row["cycle_id"] for row in finished} == planned
    assert all(row["worker_id"].startswith("worker") for row in finished)
    assert all(row["duration_s"] > 0 for row in finished)


def test_all_processes_measure_what_happened(seen: Seen) -> None:
    def value(process: str, sample: str) -> float:
        [line] = [row for row in seen.metrics[process].splitlines() if row.startswith(sample + " ")]
        return float(line.rpartition(" ")[2])

    tenant = f'tenant_id="{seen.tenant_id}"'
    assert value("worker", f'cyclora_tokens_total{{meter="training",{tenant}}}') == 2 * len(TOKENS)
    done = 'cyclora_settled_operations_total{kind="forward_backward",state="done"}'
    assert value("worker", done) == 1
    assert value("scheduler", "cyclora_scheduler_is_leading") == 1
    assert value("server", "cyclora_poll_wake_seconds_count") > 0
    assert value("worker", "cyclora_base_model_load_seconds") > 0


def test_all_processes_are_alive_and_ready(seen: Seen) -> None:
    for port in seen.deployment.metrics_ports.values():
        for probe in ("live", "ready"):
            answer = httpx.get(f"http://127.0.0.1:{port}/healthz/{probe}")
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_tenants_do_not_reach_metrics(seen: Seen) -> None:
    with httpx.Client(base_url=seen.deployment.base_url) as http:
        assert http.get("/metrics", headers={"X-API-Key": seen.api_key}).status_code == 404
        assert http.get("/healthz/ready").json() == {"status": "ok"}
