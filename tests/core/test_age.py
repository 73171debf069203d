from __future__ import annotations

import pytest

from core.builders import age_decrypt, age_identity
from cyclora_core import age
from cyclora_core.errors import UserError

SSH_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN somebody"
)


def recipient() -> str:
    return str(age_identity().to_public())


def test_ten_recipients_of_either_kind_are_accepted() -> None:
    age.check_recipients([SSH_KEY, *(recipient() for _ in range(9))])


@pytest.mark.parametrize("wrong", ["", "age1", "ssh-dss AAAA", "tml-key", "age1\ud800", "a\0"])
def test_what_is_no_public_key_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(UserError, match="which is no public key; expected age1"):
        age.check_recipients([recipient(), wrong])


def test_a_private_key_that_was_sent_by_mistake_is_not_repeated() -> None:
    secret = str(age_identity())

    with pytest.raises(UserError) as caught:
        age.check_recipients([secret])

    assert secret[15:40] not in str(caught.value)


def test_only_a_recipient_decrypts() -> None:
    reader, other = age_identity(), age_identity()

    secret = age.encrypt(b"weights", [str(reader.to_public())])

    assert age_decrypt(secret, reader) == b"weights"
    with pytest.raises(ValueError):
        age_decrypt(secret, other)
