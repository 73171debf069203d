"""One upload from its first byte to a checkpoint, or to nothing.

::

    doom the files -> write them -> check and convert -> record run and checkpoint in one step

A server that dies in between leaves files whose record never came, which a sweep deletes. While an
upload goes on they are doomed anew again and again, so that a slow one is not taken for a dead one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cyclora_core import peft
from cyclora_core.errors import Overloaded, PayloadTooLarge, UserError
from cyclora_core.ids import CheckpointPath
from cyclora_core.operations import LoraConfig
from cyclora_core.peft import COMPLETE_FILE, CONFIG_FILE, WEIGHTS_FILE, ModuleGroup, TargetModule
from cyclora_core.records import UPLOADED, Checkpoint
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.types import BaseModelInfo
from cyclora_server import access
from cyclora_server.services import Services
from cyclora_server.uploads.peft_config import PeftConfig, read_config
from cyclora_server.uploads.tar import TarEntry, TarReader
from cyclora_server.uploads.tensors import find_lora, read_header, write_adapter

UNFINISHED_KEPT_S = 3600.0
"""Seconds after the last sign of an upload until its files are deleted."""

_RENEW_BYTES = 64 * 1024 * 1024
_RENEW_S = 60.0
_WRITE_BYTES = 1024 * 1024
_MAX_CONFIG_BYTES = 1024 * 1024
_RECEIVED_FILE = "received.safetensors"


@dataclass(frozen=True, slots=True)
class Upload:
    """Whose adapter is uploaded, to where, and what it must fit."""

    tenant_id: str
    path: CheckpointPath
    base: BaseModelInfo
    modules: list[TargetModule]
    key_id: str = ""
    """Of who asked."""
    project_id: str | None = None
    """The one that this key is bound to."""


class Receiver:
    """Receives the body of one upload."""

    def __init__(self, services: Services, upload: Upload, chunks: AsyncIterator[bytes]) -> None:
        self._services = services
        self._upload = upload
        self._digest = hashlib.sha256(f"{upload.base.name} {upload.path.name} ".encode())
        self._chunks = chunks
        self._num_bytes = 0
        # Of this attempt alone: what an earlier one left may be deleted at any moment.
        self._files = CheckpointFiles(str(upload.path), str(secrets.randbits(63)))
        self._has_files = False
        self._renewed_mono_s = 0.0
        self._renewed_bytes = 0

    async def digest(self) -> str:
        """Read all that is left of the body; a retry is recognised by the digest of it all.

        Raises:
            PayloadTooLarge: it exceeds the bound.
        """
        async for _ in self._bounded():
            pass
        return f"{UPLOADED}{self._digest.hexdigest()}"

    async def receive(self) -> Checkpoint:
        """Store the adapter, but record nothing yet.

        Raises:
            UserError: it is no adapter of the base model that we can compute.
            PayloadTooLarge: it exceeds the bound.
            Overloaded: there is no room.
        """
        await self._renew()
        self._has_files = True
        try:
            return await self._receive()
        except BaseException as error:
            # Also when the client is gone. If we die here, a sweep deletes what there is.
            await access.delete_files(self._services, self._files)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Overloaded("there is no room on the disk for the adapter") from None
            raise

    async def discard(self) -> None:
        """Delete the files again: another attempt was recorded."""
        await access.delete_files(self._services, self._files)

    async def _receive(self) -> Checkpoint:
        upload, storage = self._upload, self._services.storage
        folder = await asyncio.to_thread(storage.begin_revision, upload.path, self._files.revision)
        config = await self._read_tar(folder)
        lora = await asyncio.to_thread(convert, folder, config, upload)
        await self._renew()
        num_bytes = await asyncio.to_thread(
            storage.finish_revision, upload.path, self._files.revision
        )
        return Checkpoint(
            path=str(upload.path),
            tenant_id=upload.tenant_id,
            model_id=upload.path.model_id,
            kind=upload.path.kind,
            name=upload.path.name,
            base_model=upload.base.name,
            lora=lora,
            has_optimizer=False,
            num_bytes=num_bytes,
            created_at_ms=self._services.clock.now_ms(),
            revision=self._files.revision,
        )

    async def _read_tar(self, folder: Path) -> PeftConfig:
        """Write the weights as they came; returns the config."""
        tar = TarReader(self._bounded())
        config: PeftConfig | None = None
        seen: set[str] = set()
        while entry := await tar.next():
            if entry.name not in (CONFIG_FILE, WEIGHTS_FILE) or entry.name in seen:
                raise UserError(
                    f"the tar holds {entry.name[:140]!r}; expected {CONFIG_FILE} and "
                    f"{WEIGHTS_FILE}, once each"
                )
            seen.add(entry.name)
            if entry.name == CONFIG_FILE:
                config = read_config(await _small(tar, entry), self._upload.base.max_lora_rank)
            else:
                await self._write(tar, folder / _RECEIVED_FILE)
        if config is None or WEIGHTS_FILE not in seen:
            missing = CONFIG_FILE if config is None else WEIGHTS_FILE
            raise UserError(f"the tar holds no {missing}")
        return config

    async def _write(self, tar: TarReader, path: Path) -> None:
        buffer = bytearray()
        with await asyncio.to_thread(path.open, "wb") as file:
            async for chunk in tar.contents():
                buffer += chunk
                if len(buffer) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(file.write, bytes(buffer))

    async def _renew_in_time(self) -> None:
        mono_s = self._services.clock.mono_s()
        is_due = mono_s - self._renewed_mono_s >= _RENEW_S
        if is_due or self._num_bytes - self._renewed_bytes >= _RENEW_BYTES:
            await self._renew()

    async def _renew(self) -> None:
        """Say that this upload goes on, if there still is room for it."""
        self._services.capacity.check()
        await self._services.store.checkpoints.doom_files(self._files, UNFINISHED_KEPT_S)
        self._renewed_mono_s = self._services.clock.mono_s()
        self._renewed_bytes = self._num_bytes

    async def _bounded(self) -> AsyncGenerator[bytes]:
        limit = self._services.settings.max_upload_bytes
        async for chunk in self._chunks:
            self._num_bytes += len(chunk)
            if self._num_bytes > limit:
                raise PayloadTooLarge(f"the adapter has more than the accepted {limit} bytes")
            self._digest.update(chunk)
            if self._has_files:
                await self._renew_in_time()
            yield chunk


async def _small(tar: TarReader, entry: TarEntry) -> bytes:
    if entry.num_bytes > _MAX_CONFIG_BYTES:
        raise UserError(
            f"{entry.name} has {entry.num_bytes} bytes; at most {_MAX_CONFIG_BYTES} are accepted"
        )
    return b"".join([chunk async for chunk in tar.contents()])


def convert(folder: Path, config: PeftConfig, upload: Upload) -> LoraConfig:
    """Put the files of a checkpoint in the place of what was received."""
    received = folder / _RECEIVED_FILE
    tensors = read_header(received)
    lora = find_lora(tensors, config, upload.modules)
    flags = {
        ModuleGroup.ATTN: lora.train_attn,
        ModuleGroup.MLP: lora.train_mlp,
        ModuleGroup.UNEMBED: lora.train_unembed,
    }
    modules = [module for module in upload.modules if flags[module.group]]
    write_adapter(received, folder / WEIGHTS_FILE, tensors, modules, config.lora_rank)
    text = peft.adapter_config(
        upload.base.name, config.lora_rank, config.lora_alpha, modules, upload.modules
    )
    (folder / CONFIG_FILE).write_text(json.dumps(text, indent=2))
    received.unlink()
    (folder / COMPLETE_FILE).touch()
    return lora
