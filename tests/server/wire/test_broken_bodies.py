"""Bodies that are cut off or damaged anywhere are refused, and never an error of ours."""

from __future__ import annotations

from random import Random

import httpx

from cyclora_core import ids
from server.doubles.builders import MODEL
from server.doubles.store import StoreDouble
from server.routes.test_training import PROTOBUF, pass_bytes

PATH = "/api/v1/forward_backward"


def is_refused(answer: httpx.Response, store: StoreDouble) -> bool:
    """Refused at once, or as a future that has failed with the reason."""
    if answer.status_code != 200:
        return 400 <= answer.status_code < 500 and bool(answer.json()["detail"])
    return store.submitted(answer.json()["request_id"]).error is not None


async def test_a_body_cut_off_anywhere_is_refused_or_a_whole_request(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    whole = pass_bytes(1, 3)
    for length in range(len(whole)):
        store.operations.submissions.clear()
        store.futures.records.clear()

        answer = await client.post(PATH, content=whole[:length], headers=PROTOBUF)

        # Fields that follow one another may end between two of them, and mean less.
        assert answer.status_code < 500, length
        assert is_refused(answer, store) or store.submitted(ids.request_id(MODEL, 1)), length


async def test_a_damaged_body_is_never_an_error_of_ours(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    rng = Random(0)
    whole = pass_bytes(1, 3)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        store.operations.submissions.clear()
        store.futures.records.clear()

        answer = await client.post(PATH, content=bytes(damaged), headers=PROTOBUF)

        assert answer.status_code < 500, bytes(damaged)


async def test_noise_is_refused(client: httpx.AsyncClient, store: StoreDouble) -> None:
    rng = Random(1)
    for length in (1, 2, 10, 100, 1000, 8000):
        answer = await client.post(PATH, content=rng.randbytes(length), headers=PROTOBUF)

        assert is_refused(answer, store), length
