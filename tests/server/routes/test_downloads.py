from __future__ import annotations

import dataclasses
import io
import tarfile
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from tinker import types

from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind
from cyclora_core.records import Checkpoint
from cyclora_core.storage import StoredFile
from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from server.doubles.builders import MODEL, STRANGER, STRANGER_KEY, checkpoint
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble

RUN = f"/api/v1/training_runs/{MODEL}/checkpoints"
URLS = f"{RUN}/external_weights/final/external_weights_urls"
ARCHIVE = f"{RUN}/weights/final/archive"
WEIGHTS = bytes(range(256)) * 300
STRANGE = {"X-API-Key": STRANGER_KEY}
FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": WEIGHTS,
    "checkpoint_complete": b"",
}


class Fixture:
    """A checkpoint with its files, and the bare GETs that clients fetch them with."""

    def __init__(
        self, app: FastAPI, store: StoreDouble, storage: StorageDouble, folder: Path
    ) -> None:
        self.store = store
        self.bare = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://other")
        self._storage = storage
        self._folder = folder

    def put(self, kind: CheckpointKind, files: dict[str, bytes] = FILES, **changes: Any) -> str:
        record = self.store.checkpoints.put(checkpoint(kind=kind, revision="7", **changes))
        stored: list[StoredFile] = []
        for name, data in files.items():
            (self._folder / name).write_bytes(data)
            stored.append(StoredFile(self._folder / name, len(data)))
        self._storage.files[f"{record.path} 7"] = stored
        return record.path

    def change(self, path: str, **changes: Any) -> Checkpoint:
        record = self.store.checkpoints.records[path]
        return self.store.checkpoints.put(dataclasses.replace(record, **changes))


@pytest.fixture
def fixture(app: FastAPI, store: StoreDouble, storage: StorageDouble, tmp_path: Path) -> Fixture:
    return Fixture(app, store, storage, tmp_path)


async def weights_url(client: httpx.AsyncClient, **headers: Any) -> str:
    answer = await client.get(URLS, **headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["urls"]["adapter_model.safetensors"]


async def test_each_file_of_an_export_has_a_url_that_needs_no_key(
    client: httpx.AsyncClient, fixture: Fixture, clock: ManualClock, settings: Settings
) -> None:
    fixture.put(CheckpointKind.EXTERNAL)

    answer = await client.get(URLS)

    response = types.ExternalWeightsUrlsResponse.model_validate(answer.json())
    assert response.expires.tzinfo is not None
    assert response.expires.timestamp() == clock.now_ms() // 1000 + settings.download_url_ttl_s
    assert set(response.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    for name, url in response.urls.items():
        assert url.startswith("http://server/api/v1/files/")
        found = await fixture.bare.get(url)
        assert found.status_code == 200
        assert found.content == FILES[name]
        assert found.headers["Content-Length"] == str(len(FILES[name]))


async def test_a_range_of_a_file_can_be_fetched(
    client: httpx.AsyncClient, fixture: Fixture
) -> None:
    """So that a download that broke off can go on."""
    fixture.put(CheckpointKind.EXTERNAL)

    found = await fixture.bare.get(await weights_url(client), headers={"Range": "bytes=70000-"})

    assert found.status_code == 206
    assert found.content == WEIGHTS[70000:]


async def test_a_url_that_was_changed_is_refused(
    client: httpx.AsyncClient, fixture: Fixture
) -> None:
    fixture.put(CheckpointKind.EXTERNAL)
    url = await weights_url(client)

    for changed in (
        url.partition("?")[0],
        url.replace("signature=", "signature=0"),
        url.replace("expires=", "expires=9"),
        url.replace("adapter_model.safetensors", "adapter_config.json"),
        url.replace("adapter_model.safetensors", "..%5csecret"),
        url.replace("/owned/", "/published/"),
        url.replace("/external_weights/", "/weights/"),
        url.replace("train:0", "train:1"),
    ):
        assert (await fixture.bare.get(changed)).status_code == 403, changed


async def test_a_url_of_another_deployment_is_refused(
    client: httpx.AsyncClient, fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.put(CheckpointKind.EXTERNAL)
    url = await weights_url(client)

    async def other(_name: str) -> bytes:
        return b"key of another deployment"

    monkeypatch.setattr(fixture.store.secrets, "shared", other)

    assert (await fixture.bare.get(url)).status_code == 403


async def test_a_url_expires(
    client: httpx.AsyncClient, fixture: Fixture, clock: ManualClock, settings: Settings
) -> None:
    fixture.put(CheckpointKind.EXTERNAL)
    url = await weights_url(client)

    clock.advance(settings.download_url_ttl_s)

    assert (await fixture.bare.get(url)).status_code == 410


async def test_a_url_ends_with_its_checkpoint(
    client: httpx.AsyncClient, fixture: Fixture, clock: ManualClock
) -> None:
    path = fixture.put(CheckpointKind.EXTERNAL)
    url = await weights_url(client)

    record = fixture.change(path, expires_at_ms=clock.now_ms())
    expired = await fixture.bare.get(url)
    fixture.change(path, expires_at_ms=None, revision="8")
    replaced = await fixture.bare.get(url)
    fixture.store.checkpoints.put(dataclasses.replace(record, expires_at_ms=None))
    there = await fixture.bare.get(url)
    await client.delete(f"{RUN}/external_weights/final")
    deleted = await fixture.bare.get(url)

    answers = [expired, replaced, there, deleted]
    assert [each.status_code for each in answers] == [404, 404, 200, 404]


async def test_files_that_vanish_this_very_moment_are_not_found(
    client: httpx.AsyncClient, fixture: Fixture, storage: StorageDouble, tmp_path: Path
) -> None:
    fixture.put(CheckpointKind.EXTERNAL)
    url = await weights_url(client)

    (tmp_path / "adapter_model.safetensors").unlink()
    between = await fixture.bare.get(url)
    storage.files.clear()

    assert between.status_code == 404
    assert (await fixture.bare.get(url)).status_code == 404
    assert (await client.get(URLS)).status_code == 404


async def test_a_stranger_reads_what_is_published_until_it_is_taken_back(
    client: httpx.AsyncClient, fixture: Fixture
) -> None:
    path = fixture.put(CheckpointKind.EXTERNAL)
    before = await client.get(URLS, headers=STRANGE)
    fixture.change(path, is_public=True)
    url = await weights_url(client, headers=STRANGE)
    while_published = await fixture.bare.get(url)
    own_url = await weights_url(client)

    fixture.change(path, is_public=False)

    assert before.status_code == 404
    assert while_published.status_code == 200
    assert (await fixture.bare.get(url)).status_code == 404
    assert (await fixture.bare.get(own_url)).status_code == 200


@pytest.mark.parametrize("route", [URLS, ARCHIVE])
async def test_urls_are_handed_out_to_the_owner_only(
    client: httpx.AsyncClient, fixture: Fixture, route: str
) -> None:
    kind = CheckpointKind.EXTERNAL if route == URLS else CheckpointKind.TRAINING
    fixture.put(kind, tenant_id=STRANGER)

    assert (await client.get(route)).status_code == 404
    assert (await fixture.bare.get(route)).status_code == 401


async def test_only_exports_have_urls_per_file(client: httpx.AsyncClient, fixture: Fixture) -> None:
    fixture.put(CheckpointKind.TRAINING)

    answer = await client.get(URLS.replace("external_weights/final", "weights/final"))

    assert answer.status_code == 400
    assert "make one with save_weights_external" in answer.json()["detail"]


@pytest.mark.parametrize("kind", [CheckpointKind.TRAINING, CheckpointKind.SAMPLER])
async def test_an_archive_is_a_tar_of_what_peft_reads(
    client: httpx.AsyncClient, fixture: Fixture, kind: CheckpointKind
) -> None:
    fixture.put(kind, {**FILES, "optimizer.safetensors": b"moments"})

    answer = await client.get(f"{RUN}/{kind}/final/archive", follow_redirects=False)
    found = await fixture.bare.get(answer.headers["Location"])

    assert answer.status_code == 302
    assert parsedate_to_datetime(answer.headers["Expires"]).tzinfo is not None
    assert found.status_code == 200
    assert found.headers["Content-Length"] == str(len(found.content))
    with tarfile.open(fileobj=io.BytesIO(found.content)) as tar:
        files = {
            each: opened.read() for each in tar.getnames() if (opened := tar.extractfile(each))
        }
    assert files == FILES


async def test_an_archive_url_is_no_right_to_its_files(
    client: httpx.AsyncClient, fixture: Fixture
) -> None:
    fixture.put(CheckpointKind.TRAINING)
    url = (await client.get(ARCHIVE, follow_redirects=False)).headers["Location"]

    forged = url.replace("/archives/", "/files/").replace("?", "/optimizer.safetensors?")

    assert (await fixture.bare.get(forged)).status_code == 403


async def test_a_missing_checkpoint_has_neither(client: httpx.AsyncClient) -> None:
    for route in (URLS, ARCHIVE, URLS.replace("final", "..%2ffinal"), URLS.replace(MODEL, "x")):
        assert (await client.get(route)).status_code in (400, 404), route


async def test_urls_keep_the_prefix_under_which_the_application_is_mounted(
    app: FastAPI, fixture: Fixture
) -> None:
    fixture.put(CheckpointKind.EXTERNAL)
    transport = httpx.ASGITransport(app, root_path="/some/prefix")
    headers = {"X-API-Key": "tml-key-of-a"}
    async with httpx.AsyncClient(transport=transport, headers=headers) as mounted:
        answer = await mounted.get(f"http://gpu.lab:9000/some/prefix{URLS}")
        url = answer.json()["urls"]["adapter_model.safetensors"]

        assert url.startswith("http://gpu.lab:9000/some/prefix/api/v1/files/")
        assert (await mounted.get(url)).content == WEIGHTS


async def test_urls_begin_with_the_public_url_if_there_is_one(
    settings: Settings,
    store: StoreDouble,
    storage: StorageDouble,
    clock: ManualClock,
    fixture: Fixture,
) -> None:
    fixture.put(CheckpointKind.EXTERNAL)
    public = settings.model_copy(update={"public_url": "https://gpu.lab/tinker/"})
    app = create_app(public, store, storage, clock)
    transport = httpx.ASGITransport(app)
    headers = {"X-API-Key": "tml-key-of-a"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://inside", headers=headers
    ) as client:
        url = await weights_url(client)

    assert url.startswith("https://gpu.lab/tinker/api/v1/files/")
    split = urlsplit(url)
    behind_proxy = f"{split.path.removeprefix('/tinker')}?{split.query}"
    assert (await fixture.bare.get(behind_proxy)).content == WEIGHTS
