from __future__ import annotations

import json
import stat
import uuid
from pathlib import Path

import pytest

from cyclora_client.up.bootstrap import bootstrap
from cyclora_client.up.errors import UpError
from cyclora_core.store import Store


@pytest.fixture
def key_prefix() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


async def test_the_first_start_makes_a_tenant_and_two_keys_for_the_owner_only(
    redis_url: str, key_prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "credentials.json"
    made = await bootstrap(redis_url, key_prefix, path)

    store = await Store.open(redis_url, key_prefix)
    api_key = await store.api_keys.of_secret(made.api_key)
    admin_key = await store.api_keys.of_secret(made.admin_key)
    await store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(json.loads(path.read_bytes())) == {"api_key", "admin_key", "tenant_id"}
    assert api_key is not None
    assert admin_key is not None
    assert (api_key.key.is_admin, admin_key.key.is_admin) == (False, True)
    assert api_key.key.tenant_id == admin_key.key.tenant_id == made.tenant_id


async def test_later_starts_use_the_same_keys(
    redis_url: str, key_prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "credentials.json"
    first = await bootstrap(redis_url, key_prefix, path)

    assert await bootstrap(redis_url, key_prefix, path) == first


async def test_a_start_that_was_cut_off_before_the_file_was_written_makes_no_second_tenant(
    redis_url: str, key_prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "credentials.json"
    first = await bootstrap(redis_url, key_prefix, path)
    path.unlink()

    second = await bootstrap(redis_url, key_prefix, path)

    assert second.tenant_id == first.tenant_id
    assert second.api_key != first.api_key


async def test_a_revoked_key_is_replaced_and_the_other_one_kept(
    redis_url: str, key_prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "credentials.json"
    first = await bootstrap(redis_url, key_prefix, path)
    store = await Store.open(redis_url, key_prefix)
    found = await store.api_keys.of_secret(first.api_key)
    assert found is not None
    await store.api_keys.revoke(found.key.key_id)
    await store.close()

    second = await bootstrap(redis_url, key_prefix, path)

    assert second.api_key != first.api_key
    assert (second.admin_key, second.tenant_id) == (first.admin_key, first.tenant_id)


async def test_keys_of_a_store_that_was_lost_are_replaced(
    redis_url: str, key_prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "credentials.json"
    first = await bootstrap(redis_url, key_prefix, path)

    second = await bootstrap(redis_url, key_prefix + "-empty", path)

    assert second.tenant_id != first.tenant_id
    assert await bootstrap(redis_url, key_prefix + "-empty", path) == second


@pytest.mark.parametrize("content", ["", "[]", '{"api_key": "tml-x"}'])
async def test_a_damaged_file_is_a_clear_error_and_stays(
    redis_url: str, key_prefix: str, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(content)

    with pytest.raises(UpError, match="delete it to get new keys"):
        await bootstrap(redis_url, key_prefix, path)
    assert path.read_text() == content
