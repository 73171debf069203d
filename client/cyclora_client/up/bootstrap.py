"""Keys that no key is needed for: those of a data folder, and a deployment's first admin key."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclora_client.files import write_atomic
from cyclora_client.up.errors import UpError
from cyclora_core.accounts import TENANT_SCOPES, Scope
from cyclora_core.errors import UserError

if TYPE_CHECKING:
    from cyclora_core.store import Store

TENANT_NAME = "default"
BOOTSTRAP = "bootstrap"
"""In the audit log, in place of the key_id of who asked."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The keys that ``cyclora up`` shows; kept in ``credentials.json``, for the owner only."""

    api_key: str
    admin_key: str
    tenant_id: str


async def bootstrap(redis_url: str, key_prefix: str, credentials_file: Path) -> Credentials:
    """Credentials that the store accepts; a key it does not know, or revoked, is replaced.

    Raises:
        UpError: the credentials file exists but cannot be understood.
    """
    # Redis is a need of this one function; the rest of the client does without it.
    from cyclora_core.store import Store

    known = _read(credentials_file)
    store = await Store.open(redis_url, key_prefix)
    try:
        credentials = await _checked(store, known)
    finally:
        await store.close()
    if credentials != known:
        content = json.dumps(dataclasses.asdict(credentials), indent=2) + "\n"
        write_atomic(credentials_file, content.encode())
    return credentials


@dataclass(frozen=True, slots=True)
class AdminKey:
    """A key just made, which nobody can show again."""

    admin_key: str
    key_id: str
    tenant_id: str


async def first_admin_key(redis_url: str, key_prefix: str, *, force: bool = False) -> AdminKey:
    """An admin key for a deployment that nobody administers yet.

    Raises:
        UserError: there is an admin key that can be used, and ``force`` is not set.
        Unavailable: nobody answers at ``redis_url``.
    """
    from cyclora_core.store import Store

    store = await Store.open(redis_url, key_prefix)
    try:
        now_ms = store.clock.now_ms()
        usable = [
            each.key.key_id
            for each in await store.api_keys.list()
            if each.key.is_admin and each.is_usable(now_ms)
        ]
        if usable and not force:
            raise UserError(
                f"there is an admin key that can be used ({', '.join(usable[:3])}); make others "
                "with it, or set --force if it is lost"
            )
        tenant_id = await _tenant(store, None)
        scopes = frozenset({Scope.ADMIN})
        secret, record = await store.api_keys.create(tenant_id, "admin", scopes, BOOTSTRAP)
    finally:
        await store.close()
    return AdminKey(secret, record.key_id, tenant_id)


async def _checked(store: Store, known: Credentials | None) -> Credentials:
    tenant_id = await _tenant(store, known)
    api_key = known.api_key if known else None
    admin_key = known.admin_key if known else None
    return Credentials(
        api_key=await _key(store, tenant_id, "default", api_key, TENANT_SCOPES),
        admin_key=await _key(store, tenant_id, "admin", admin_key, frozenset({Scope.ADMIN})),
        tenant_id=tenant_id,
    )


async def _tenant(store: Store, known: Credentials | None) -> str:
    """The tenant of the file, else one of our name left by a start that was cut off."""
    tenants = await store.tenants.list()
    for tenant in tenants:
        if known and tenant.tenant_id == known.tenant_id:
            return tenant.tenant_id
    for tenant in tenants:
        if tenant.name == TENANT_NAME and tenant.is_enabled:
            return tenant.tenant_id
    return (await store.tenants.create(TENANT_NAME, BOOTSTRAP)).tenant_id


async def _key(
    store: Store, tenant_id: str, name: str, key: str | None, scopes: frozenset[Scope]
) -> str:
    if key is not None:
        found = await store.api_keys.of_secret(key)
        is_usable = found is not None and found.key.is_usable(store.clock.now_ms())
        if found and is_usable and (found.key.tenant_id, found.key.scopes) == (tenant_id, scopes):
            return key
    fresh, _ = await store.api_keys.create(tenant_id, name, scopes, BOOTSTRAP)
    return fresh


def _read(path: Path) -> Credentials | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        value: Any = json.loads(content)
        return Credentials(**{name: str(text) for name, text in value.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise UpError(
            f"{str(path)!r} is not a credentials file ({error}); delete it to get new keys"
        ) from error
