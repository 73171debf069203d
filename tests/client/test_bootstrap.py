from __future__ import annotations

import json
import stat
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cyclora_client import cli
from cyclora_client.up.bootstrap import bootstrap, first_admin_key
from cyclora_client.up.errors import UpError
from cyclora_core.accounts import Scope
from cyclora_core.errors import UserError
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


async def test_the_first_admin_key_opens_the_deployment(redis_url: str, key_prefix: str) -> None:
    made = await first_admin_key(redis_url, key_prefix)

    store = await Store.open(redis_url, key_prefix)
    found = await store.api_keys.of_secret(made.admin_key)
    entries = await store.audit.list(made.tenant_id, 0, store.clock.now_ms() + 1)
    await store.close()
    assert found is not None
    assert (found.key.key_id, found.key.scopes) == (made.key_id, {Scope.ADMIN})
    assert {each.details["key_id"] for each in entries} == {"bootstrap"}


async def test_a_second_admin_key_needs_force_while_the_first_can_be_used(
    redis_url: str, key_prefix: str
) -> None:
    first = await first_admin_key(redis_url, key_prefix)
    with pytest.raises(UserError, match=first.key_id):
        await first_admin_key(redis_url, key_prefix)
    second = await first_admin_key(redis_url, key_prefix, force=True)

    store = await Store.open(redis_url, key_prefix)
    for made in (first, second):
        await store.api_keys.revoke(made.key_id)
    await store.close()
    third = await first_admin_key(redis_url, key_prefix)

    assert len({first.admin_key, second.admin_key, third.admin_key}) == 3
    assert first.tenant_id == second.tenant_id == third.tenant_id


def test_the_command_prints_the_key_once_for_programs_too(redis_url: str, key_prefix: str) -> None:
    arguments = ["admin", "bootstrap", "--redis-url", redis_url, "--key-prefix", key_prefix]
    made = CliRunner().invoke(cli.app, [*arguments, "--json"])
    again = CliRunner().invoke(cli.app, arguments)

    assert made.exit_code == 0
    [row] = json.loads(made.stdout)
    assert row["admin_key"].startswith("tml-")
    assert again.exit_code == 1
    assert "--force" in again.stderr
    assert row["admin_key"] not in again.output


def test_a_store_that_cannot_be_reached_ends_the_command(key_prefix: str) -> None:
    arguments = ["admin", "bootstrap", "--redis-url", "unix:///nowhere/valkey.sock"]
    result = CliRunner().invoke(cli.app, arguments)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
