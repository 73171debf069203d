from __future__ import annotations

import jwt
import pytest

from cyclora_core.accounts import TENANT_SCOPES, ApiKey
from cyclora_server.tokens import PREFIX, TokenSigner
from server.doubles.accounts import Secrets
from server.doubles.builders import TENANT

KEY = ApiKey("key-a", TENANT, "laptop", TENANT_SCOPES, 1000)
NOW_MS = 1_000_000_000
SECRET = b"a key of sixty-four bytes" + b"." * 40


@pytest.fixture
def signer() -> TokenSigner:
    return TokenSigner(SECRET)


def signed(signer: TokenSigner) -> str:
    return signer.sign(KEY, "urn", NOW_MS, 1800)


def test_a_token_stands_for_its_key_until_it_expires(signer: TokenSigner) -> None:
    token = signed(signer)

    assert token.startswith(PREFIX)
    assert signer.key_id(token, NOW_MS) == "key-a"
    assert signer.key_id(token, NOW_MS + 1_799_999) == "key-a"
    assert signer.key_id(token, NOW_MS + 1_800_000) is None


def forged(secret: bytes | None = SECRET, algorithm: str = "HS256", **changes: object) -> str:
    claims = {"iss": "cyclora", "key_id": "key-a", "iat": 1, "exp": 2**40, **changes}
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, secret, algorithm)


def test_the_forged_ones_below_are_refused_for_one_thing_each(signer: TokenSigner) -> None:
    assert signer.key_id(forged(), NOW_MS) == "key-a"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "eyJ.eyJ.eyJ",
        forged(b"another key of some bytes" + b"." * 40),
        forged(None, "none"),
        forged(algorithm="HS512"),
        forged(iss="other"),
        forged(exp=None),
        forged(exp="never"),
        forged(exp=1.5),
        forged(key_id=None),
        forged(key_id=["key-a"]),
    ],
)
def test_what_we_did_not_sign_so_stands_for_nothing(signer: TokenSigner, token: str) -> None:
    assert signer.key_id(token, NOW_MS) is None


def test_a_changed_token_stands_for_nothing(signer: TokenSigner) -> None:
    header, payload, signature = signed(signer).split(".")

    assert signer.key_id(f"{header}.{payload[:-2]}AA.{signature}", NOW_MS) is None


async def test_servers_of_one_deployment_take_what_another_signed() -> None:
    one, other = await TokenSigner.of(Secrets()), await TokenSigner.of(Secrets())

    assert other.key_id(signed(one), NOW_MS) == "key-a"
