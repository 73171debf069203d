from __future__ import annotations

from urllib.parse import parse_qs

import pytest

from cyclora_server.signing import UrlSigner
from server.doubles.accounts import Secrets

PATH = "/files/a run:train:0/weights.safetensors"
NOW_MS = 1_000_000


def query_of(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text).items()}


@pytest.fixture
def signer() -> UrlSigner:
    return UrlSigner(b"key of this deployment")


def test_what_was_signed_may_be_read_until_it_expires(signer: UrlSigner) -> None:
    query = query_of(signer.sign(PATH, NOW_MS, "key-1"))

    assert signer.check(PATH, query, NOW_MS - 1)
    assert not signer.check(PATH, query, NOW_MS)


@pytest.mark.parametrize(
    "changed",
    [
        {"expires": str(NOW_MS + 1)},
        {"expires": f"0{NOW_MS}"},
        {"expires": "\u0661"},
        {"expires": "1e12"},
        {"signature": "0" * 64},
        {"signature": ""},
        {"signature": "\u00e9\ud800"},
    ],
)
def test_a_changed_query_is_refused(signer: UrlSigner, changed: dict[str, str]) -> None:
    query = query_of(signer.sign(PATH, NOW_MS, "key-1"))

    assert not signer.check(PATH, {**query, **changed}, NOW_MS - 1)


def test_a_signature_is_for_one_path_only(signer: UrlSigner) -> None:
    query = query_of(signer.sign(PATH, NOW_MS, "key-1"))

    assert not signer.check(f"{PATH}.age", query, NOW_MS - 1)
    assert not signer.check("/files/\ud800", query, NOW_MS - 1)


def test_an_empty_query_is_refused(signer: UrlSigner) -> None:
    assert not signer.check(PATH, {}, 0)


async def test_servers_of_one_deployment_check_what_another_signed() -> None:
    one, other = await UrlSigner.of(Secrets()), await UrlSigner.of(Secrets())

    assert other.check(PATH, query_of(one.sign(PATH, NOW_MS, "key-1")), 0)
    assert not UrlSigner(b"other").check(PATH, query_of(one.sign(PATH, NOW_MS, "key-1")), 0)
