from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from cyclora_core import errors
from cyclora_core.errors import (
    CycloraError,
    FencedOut,
    Forbidden,
    Gone,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ServerError,
    Unauthorized,
    Unavailable,
    UserError,
)
from cyclora_core.types import QueueState
from cyclora_server import problems
from cyclora_server.problems import InvalidBody

# What the SDK retries for minutes: fit only for what may succeed later.
RETRIED = {408, 409, 429, *range(500, 600)}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("x"), 400),
        (Unauthorized("x"), 401),
        (Forbidden("x"), 403),
        (NotFound("x"), 404),
        (Gone("x"), 410),
        (PayloadTooLarge("x"), 413),
        (InvalidBody("x"), 422),
        (Overloaded("x"), 429),
        (Unavailable("x"), 503),
        (ServerError("x"), 500),
        (FencedOut("x"), 500),
        (CycloraError("x"), 500),
        (ValueError("x"), 500),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    assert problems.answer(error).status_code == status


def test_what_can_never_succeed_is_never_retried_by_the_sdk() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    permanent = [each for each in kinds if issubclass(each, UserError)]

    assert permanent
    assert not RETRIED & {problems.answer(each("x")).status_code for each in permanent}


def test_every_answer_has_a_body_and_its_length() -> None:
    response = problems.answer(UserError("rank is 0"))

    assert json.loads(bytes(response.body)) == {"detail": "rank is 0"}
    assert response.headers["Content-Length"] == str(len(response.body))


@pytest.mark.parametrize("error", [ValueError("secret"), ServerError("secret")])
def test_a_fault_of_ours_shows_its_error_id_and_nothing_else(error: Exception) -> None:
    with capture_logs() as logs:
        response = problems.answer(error)

    detail = json.loads(bytes(response.body))["detail"]
    assert "secret" not in detail
    assert logs[0]["error_id"] in detail
    assert logs[0]["exc_info"] is error


def test_overload_says_when_to_come_back() -> None:
    assert problems.answer(Overloaded("x")).headers["Retry-After"] == "1"


def test_an_answer_does_not_repeat_a_long_value_in_full() -> None:
    assert len(problems.answer(UserError("x" * 10_000)).body) < 3000


def test_still_waiting_is_told_with_the_queue_state() -> None:
    response = problems.try_again("r", QueueState.PAUSED_CAPACITY, "no worker")

    assert response.status_code == 408
    assert json.loads(bytes(response.body)) == {
        "type": "try_again",
        "request_id": "r",
        "queue_state": "paused_capacity",
        "queue_state_reason": "no worker",
    }


@pytest.mark.parametrize("secret", [
    "tml-Zm9yZWlnbi1rZXktb2Ytc29tZWJvZHk",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
])  # fmt: skip
def test_a_key_put_into_the_wrong_place_is_not_shown_again(secret: str) -> None:
    problem = problems.problem_of(NotFound(f"model {secret!r} does not exist"))

    assert problem.detail == "model '(a secret)' does not exist"


def test_what_somebody_wrote_is_not_repeated_where_a_number_belongs() -> None:
    violation = {"loc": ("seq_id",), "msg": "Not a number", "input": "x" * 200}

    assert problems.describe_violations([violation]) == "seq_id: not a number, got 200 characters"
