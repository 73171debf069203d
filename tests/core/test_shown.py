from __future__ import annotations

import pytest

from cyclora_core.shown import HIDDEN, shown, without_password


def test_secrets_are_hidden_by_their_names_and_nothing_else_is() -> None:
    settings = {
        "jwt_secret": "x",
        "store_password": "y",
        "admin_api_key": "z",
        "token_auth": True,
        "token_lifetime_s": 3600,
        "secret_count": None,
        "key_prefix": "cyclora",
        "max_tokens_per_cycle": 100,
        "log_level": "INFO",
    }

    assert shown(settings) == {
        **settings,
        "jwt_secret": HIDDEN,
        "store_password": HIDDEN,
        "admin_api_key": HIDDEN,
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("rediss://user:p%40ss@host/0", "rediss://***@host/0"),
        (
            "unix:///run/valkey.sock?password=hunter2&db=1",
            "unix:///run/valkey.sock?password=***&db=1",
        ),
        ("s3://bucket/a?X-Amz-Signature=abc", "s3://bucket/a?X-Amz-Signature=***"),
        ("./storage", "./storage"),
        ("someone@example.org", "someone@example.org"),
    ],
)
def test_urls_are_told_without_their_passwords(url: str, expected: str) -> None:
    assert without_password(url) == expected
    assert shown({"redis_url": url, "more": [url], "inside": {"url": url}}) == {
        "redis_url": expected,
        "more": [expected],
        "inside": {"url": expected},
    }
